"""The measurement for GPUs runs, small, on whatever there is."""

import json
from pathlib import Path

from finetuning.instruction import gpu_speed


def test_it_stores_a_row_for_each_way(tmp_path: Path) -> None:
    gpu_speed.main(gpu_speed.Config(results=tmp_path / "speed.json", quick=True))
    rows = json.loads((tmp_path / "speed.json").read_bytes())["rows"]
    assert list(rows) == list(gpu_speed.WAYS)
    full, lora = rows.values()
    assert full["trained_parameters"] > 20 * lora["trained_parameters"]
    assert full["tokens_per_second"] > 0
    assert 9 < full["loss_first"] < 12  # of 50,257 tokens, nothing known
