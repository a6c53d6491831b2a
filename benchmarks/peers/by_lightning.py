"""The training in PyTorch Lightning, with its requeue on Slurm; ``lightning.sbatch`` starts it.

https://lightning.ai/docs/pytorch/stable/clouds/cluster_advanced.html: Lightning saves at the signal and has
the job queued again. ModelCheckpoint keeps the last epoch; the newer of the two is taken up.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.strategies import DDPStrategy
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parent))

import training
from training import SEED, TIMEOUT, Work, loss_of


class Module(pl.LightningModule):
    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work, self.network = work, work.network()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return loss_of(self.network, *batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.work.optimizer(self.network)


def newest(run: Path) -> str:
    """The signal's checkpoint ("hpc") or the last epoch's: Lightning takes the first only unasked."""
    saved = sorted([*run.glob("hpc_ckpt_*.ckpt"), *run.glob("checkpoints/last*.ckpt")], key=os.path.getmtime)
    return "hpc" if saved and saved[-1].name.startswith("hpc") else "last"


def main() -> None:
    config, run = map(Path, sys.argv[1:])
    training.tracing.install()
    pl.seed_everything(SEED, workers=True)
    work = Work(config)
    trainer = pl.Trainer(
        accelerator="cpu", num_nodes=2, devices=1, max_epochs=work.epochs, default_root_dir=run, logger=False,
        strategy=DDPStrategy(process_group_backend="gloo", timeout=TIMEOUT), enable_progress_bar=False,
        plugins=[SLURMEnvironment(auto_requeue=True, requeue_signal=signal.SIGUSR1)],
        callbacks=[ModelCheckpoint(dirpath=run / "checkpoints", save_last=True)],
    )  # fmt: skip
    module = Module(work)
    loader = DataLoader(work.data, batch_size=work.batch(2), shuffle=True)
    trainer.fit(module, loader, ckpt_path=newest(run))
    if trainer.is_global_zero:
        save_file(module.network.state_dict(), run / "final.safetensors")


if __name__ == "__main__":
    main()
