"""The judge's optimizer against torch's own; older judges."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diffbase.cli import InputError
from diffcore.evaluation.judging import judge
from diffcore.evaluation.judging.headline import fixed
from diffcore.evaluation.judging.muon import Muon
from shards.schema import CARTOON_SET, Attribute

SCHEMA = (Attribute("hair", 3), Attribute("eyes", 2))
ROW = {"hits": 3, "count": 4, "share": 0.75, "low": 0.3, "high": 0.95}


def test_of_nothing_the_step_is_nothing() -> None:
    weight = nn.Parameter(torch.ones(4, 2, 3, 3))
    muon = Muon([weight], weight_decay=0.0)
    muon.lr, weight.grad = 1.0, torch.zeros(4, 2, 3, 3)
    muon.step()
    assert (weight == 1).all()


def test_steps_are_those_of_torch_but_for_its_rounding() -> None:
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(6, 3, 3, 3))
    theirs = nn.Parameter(ours.detach().flatten(1).clone())
    mine = Muon([ours], weight_decay=0.1)
    # fmt: off
    reference = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, momentum=0.95, nesterov=True,
                                 adjust_lr_fn="match_rms_adamw")
    # fmt: on
    for _ in range(5):
        gradient = torch.randn(6, 3, 3, 3)
        ours.grad, theirs.grad = gradient.clone(), gradient.flatten(1).clone()
        mine.lr = 0.01
        mine.step()
        reference.step()
        assert ours.grad is None
    step = 5 * 0.01 * 0.2 * math.sqrt(27)  # of each singular direction, at most
    assert (ours.detach().flatten(1) - theirs.detach()).abs().max() < 0.02 * step


def test_a_judge_of_version_1_reads_as_it_did(tmp_path: Path) -> None:
    torch.manual_seed(0)
    old = judge.JudgeNet(SCHEMA, 64, 8, 16, version=1)
    accuracy = {a.name: ROW for a in SCHEMA}
    record = {
        "version": 1, "fingerprint": "0" * 64, "size": 64, "width": 8, "features": 16, "readable": [],
        "schema": [{"name": a.name, "variants": a.variants} for a in SCHEMA], "accuracy": accuracy,
    }  # fmt: skip
    judge.save(tmp_path, old, record)
    assert json.loads((tmp_path / "judge.json").read_text())["version"] == 1
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    expected = judge.Judge(old, SCHEMA, record).read(images)
    opened = judge.load(tmp_path)
    assert opened.headline == fixed(SCHEMA) and "hair in 75.0 %" in (opened.refused or "")
    assert (opened.read(images).features_NF == expected.features_NF).all()
    # Weights of the one network are not those of the other.
    judge.save(tmp_path, old, {**record, "version": 2})
    with pytest.raises(InputError, match="not this judge's weights"):
        judge.load(tmp_path)


def test_an_image_is_read_with_less_work_than_by_version_1() -> None:
    def work(net: judge.JudgeNet) -> int:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            net(torch.zeros(2, 3, 64, 64))
        return int(counter.get_total_flops())

    assert work(judge.JudgeNet(CARTOON_SET, 64)) < 0.5 * work(judge.JudgeNet(CARTOON_SET, 64, 32, 128, 1))
