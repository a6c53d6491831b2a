"""Averages of any length after the run: what two ranks keep, over a resume, and what is made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from diffbase.cli import InputError
from diffcore.config import configure
from diffcore.engine.ema import exponent_of, power_decay
from diffcore.export import load_network
from diffcore.runs import checkpoint
from diffcore.runs.averages.combine import average
from diffcore.runs.averages.snapshots import folder_of, snapshots
from diffcore.runs.export import export
from tests.integration.conftest import Train

KEPT = ("--ema.posthoc", "[0.05, 0.1]", "--ema.snapshot_every", "1")
KINDS = ("weights", "ema", "ema_0.05", "ema_0.1")


def kept(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Of the newest checkpoint."""
    return {kind: checkpoint.read_weights(checkpoint.complete(run)[-1], kind) for kind in KINDS}


@pytest.mark.timeout(900)
def test_averages_are_kept_resumed_and_made(train: Train, small: Path, tmp_path: Path) -> None:
    run = small.parent / "run"
    train(*KEPT, "--engine.zero", "3", ranks=2)
    whole, files = kept(run), {at: path.read_bytes() for at, path in snapshots(run).items()}
    assert list(files) == [1, 2, 3, 4]
    run.rename(small.parent / "first")

    train(*KEPT, "--engine.zero", "3", "--train.steps", "2", ranks=2)
    before = kept(run)
    (folder_of(run) / "step-00000009.safetensors").write_bytes(b"of another life")
    train(*KEPT, "--engine.zero", "3", ranks=2)
    again = kept(run)
    for kind, tensors in whole.items():
        assert all(torch.equal(again[kind][name], tensor) for name, tensor in tensors.items()), kind
    assert {at: path.read_bytes() for at, path in snapshots(run).items()} == files
    assert any(not torch.equal(before["ema_0.1"][n], t) for n, t in whole["ema_0.1"].items())

    # Other ranks and another stage go on from the same averages.
    train(*KEPT, "--engine.zero", "0", "--train.steps", "5", ranks=1)
    further = kept(run)
    for sigma in (0.05, 0.1):
        decay = power_decay(exponent_of(sigma), 5)
        for name, held in further[f"ema_{sigma}"].items():
            wanted = decay * whole[f"ema_{sigma}"][name] + (1 - decay) * further["weights"][name]
            torch.testing.assert_close(held, wanted, rtol=1e-5, atol=1e-7)

    # An average that was kept comes back, but for the rounding of its snapshot.
    export(run, tmp_path / "made", sigma_rel=0.1)
    for name, tensor in load_network(tmp_path / "made").named_parameters():
        torch.testing.assert_close(tensor, further["ema_0.1"][name], rtol=2e-3, atol=2e-4)
    assert "sigma_rel 0.1" in (tmp_path / "made" / "README.md").read_text()
    assert json.loads((run / "run.json").read_text())["identity"]["ema.posthoc"] == [0.05, 0.1]
    config = configure.load(run / "config.yaml")
    with pytest.raises(InputError, match=r"sigma_rel 0.5: allowed are 0.005 to 0.28"):
        average(run, config, 0.5, 5)
    with pytest.raises(InputError, match="no snapshot of step 0 or before"):
        average(run, config, 0.1, 0)
    with pytest.raises(
        InputError, match=r"5 snapshots give no average of sigma_rel 0.1 at step 50 \(the near"
    ):
        average(run, config, 0.1, 50)
    refused = train("--ema.posthoc", "[0.05]", check=False)
    assert refused.code == 2 and "ema.posthoc was [0.05, 0.1], now" in refused.err
