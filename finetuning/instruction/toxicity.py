"""How likely a text is to be called toxic by people: one number, from one function, on this machine alone.

Behind it is alt-profanity-check, a linear model on word counts that was trained on 200,000 comments of Wikipedia and
Twitter. It knows words, not meanings: "She drove to work" gets .6 for reasons nobody wrote down, and a polite insult
gets little. So the numbers are for sorting, and for shares of many texts; and what they sort out is to be looked at.
"""

from collections.abc import Sequence

from utils.extras import missing

TOXIC = 0.8
"""From here on a text counts as toxic. Of 3,000 answers of Alpaca, one is above: a list of animals with "ass" in it."""


def toxicity(texts: Sequence[str]) -> list[float]:
    """Return a probability for each text, some 10,000 texts per second.

    Raises:
        InputError: if the package behind it is not installed.
    """
    try:
        from profanity_check import predict_prob  # here only: it takes seconds to import
    except ImportError as error:
        raise missing("alt-profanity-check", "finetune", "looking for toxic texts") from error
    return [float(probability) for probability in predict_prob(list(texts))] if texts else []
