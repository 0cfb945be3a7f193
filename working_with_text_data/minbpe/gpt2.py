"""GPT-2's own tokenizer, exact to the token: 50,256 ranks, the pattern, and <|endoftext|>.

Radford et al. 2019, section 2.2. GPT-3's first models use the same one, under the name r50k_base.
"""

from working_with_text_data.minbpe.ranks import DATA, RankTokenizer, read_ranks
from working_with_text_data.minbpe.regex import GPT2_PATTERN

SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"  # as tiktoken checks it


class GPT2Tokenizer(RankTokenizer):
    """The tokenizer of GPT-2, tiktoken's "gpt2". It needs no network.

    Raises:
        InputError: if the ranks that come with this module are damaged.
    """

    def __init__(self) -> None:
        super().__init__(read_ranks(DATA / "gpt2.tiktoken", SHA256), GPT2_PATTERN, {"<|endoftext|>": 50256})
