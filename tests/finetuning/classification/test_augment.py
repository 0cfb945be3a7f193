"""Changed copies of texts: what they change, what they leave, and that they come out the same."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from finetuning.classification import augment
from finetuning.classification.augment import CHANGES, augmented, synonyms
from utils.files import InputError

TEXT = "The film is great. A big, quick dog runs home! Nobody was happy about the strange ending of it."
TEXTS = (TEXT, "Fine.", "One sentence without end")


@pytest.fixture
def thesaurus(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"great": ("grand", "good"), "quick": ("fast",), "strange": ("odd", "queer")}
    monkeypatch.setattr(augment, "synonyms", lambda word: known.get(word.lower(), ()))


@pytest.mark.usefixtures("thesaurus")
@pytest.mark.parametrize("method", CHANGES)
def test_copies_are_the_same_for_the_same_seed_and_kept(
    method: augment.Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = augmented(TEXTS, method, 2, tmp_path)
    assert augmented(TEXTS, method, 2, tmp_path / "another") == copies
    assert all(copies)
    assert copies[0] != TEXT
    monkeypatch.setitem(CHANGES, method, None)  # what is kept is not made again
    assert augmented(TEXTS, method, 2, tmp_path) == copies
    (path,) = tmp_path.glob("*.json")
    path.write_text("[1]")
    with pytest.raises(InputError, match="is damaged"):
        augmented(TEXTS, method, 2, tmp_path)


@pytest.mark.usefixtures("thesaurus")
def test_each_method_changes_what_it_says() -> None:
    before = Counter(TEXT.split())
    copies = {name: Counter(change(TEXT, np.random.default_rng(0)).split()) for name, change in CHANGES.items()}
    assert copies["swap"] == copies["sentences"] == before
    assert copies["delete"] < before
    assert (before - copies["delete"]).total() == 2  # a tenth of 19
    assert (copies["synonyms"] - before).keys() <= {"grand.", "good.", "fast", "odd", "queer"}
    assert (copies["synonyms"] - before).total() == (before - copies["synonyms"]).total() == 2  # a tenth of 19
    assert copies["insert"] > before
    assert (copies["insert"] - before).keys() <= {"grand", "good", "fast", "odd", "queer"}
    sentences = CHANGES["sentences"](TEXT, np.random.default_rng(1))
    assert "A big, quick dog runs home!" in sentences


@pytest.mark.slow
def test_synonyms_are_wordnets(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [str(real_data / "nltk_data")])
    assert "movie" in synonyms("film")
    assert "film" not in synonyms("film")
    assert synonyms("of") == ()


def test_a_missing_wordnet_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nowhere:
        def synsets(self, word: str) -> None:
            raise LookupError("a banner\nof many lines")

    import nltk.corpus

    monkeypatch.setattr(nltk.corpus, "wordnet", Nowhere())
    with pytest.raises(InputError, match="WordNet is not there: python -m nltk.downloader wordnet"):
        synonyms("unheardof")


def test_translation_needs_two_models(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--translators MODEL_THERE MODEL_BACK"):
        augmented(TEXTS, "translate", 0, tmp_path)


@pytest.mark.slow
def test_texts_are_translated_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a tiny model with random weights, whose translations are nonsense, but real ones of a real model."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<pad>", "</s>", "<unk>", *sorted({word for text in TEXTS for word in text.split()})]
    model = tokenizers.models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    plain = tokenizers.Tokenizer(model)
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **special).save_pretrained(tmp_path / "model")
    shape = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    config = transformers.T5Config(vocab_size=len(words), pad_token_id=0, eos_token_id=1, **shape)
    transformers.set_seed(0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    name = str(tmp_path / "model")
    monkeypatch.setattr(augment, "LONGEST_TRANSLATION", 8)  # a random model does not come to an end
    copies = augmented(TEXTS, "translate", 0, tmp_path / "cache", (name, name))
    assert len(copies) == len(TEXTS)
    assert copies == augment.back_translated(TEXTS, name, name)
    with pytest.raises(InputError, match="texts cannot be translated with .*nowhere"):
        augment.back_translated(TEXTS, str(tmp_path / "nowhere"), name)
