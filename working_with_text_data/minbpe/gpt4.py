"""GPT-4's own tokenizer, exact to the token: 100,256 ranks, another pattern, five special tokens.

Twice GPT-2's vocabulary. The pattern takes numbers apart into threes, keeps indentation together and does
not care about the case of "'S". OpenAI 2022, tiktoken's "cl100k_base".
"""

from working_with_text_data.minbpe.ranks import DATA, RankTokenizer, read_ranks
from working_with_text_data.minbpe.regex import GPT4_PATTERN

SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"  # as tiktoken checks it
SPECIAL_TOKENS = {
    "<|endoftext|>": 100257,
    "<|fim_prefix|>": 100258,  # "fill in the middle": the text before the gap,
    "<|fim_middle|>": 100259,  # what belongs in it,
    "<|fim_suffix|>": 100260,  # and the text after it
    "<|endofprompt|>": 100276,
}


class GPT4Tokenizer(RankTokenizer):
    """The tokenizer of GPT-4 and GPT-3.5, tiktoken's "cl100k_base". It needs no network.

    Raises:
        InputError: if the ranks that come with this module are damaged.
    """

    def __init__(self) -> None:
        super().__init__(read_ranks(DATA / "cl100k_base.tiktoken", SHA256), GPT4_PATTERN, SPECIAL_TOKENS)
