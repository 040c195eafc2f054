"""The loops of `steps` in other frameworks, each with its own logging, progress and checkpoints."""

import contextlib
import json
import logging
import os
from typing import Any

import lightning_fabric
import pytorch_lightning
import skorch.callbacks
import torch
from accelerate import Accelerator
from ignite.engine import Events, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver, ProgressBar
from tqdm.auto import tqdm

from benchmarks.training.task import BATCH, EPOCHS, LOG_STEPS, LR, Task

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


def _fabric(task: Task) -> None:
    logger = lightning_fabric.loggers.CSVLogger(task.folder)
    fabric = lightning_fabric.Fabric(accelerator="cpu", devices=1, loggers=logger)
    model, optimizer = fabric.setup(task.model, task.optimizer())
    loader = fabric.setup_dataloaders(task.loader())
    step = 0
    for epoch in range(EPOCHS):
        for x, y in tqdm(loader):
            optimizer.zero_grad()
            loss = task.loss(model(x), y)
            fabric.backward(loss)
            optimizer.step()
            step += 1
            if step % LOG_STEPS == 0:
                fabric.log("loss", loss.item(), step)
        state = {"model": model, "optimizer": optimizer, "step": step}
        fabric.save(task.folder / f"{epoch}.ckpt", state)


class _Module(pytorch_lightning.LightningModule):
    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.loss = task.loss
        self._task = [task]

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        x, y = batch
        loss: torch.Tensor = self.loss(self.model(x), y)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._task[0].optimizer()


def _lightning(task: Task) -> None:
    trainer = pytorch_lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=EPOCHS,
        logger=pytorch_lightning.loggers.CSVLogger(task.folder),
        log_every_n_steps=LOG_STEPS,
        callbacks=[pytorch_lightning.callbacks.TQDMProgressBar()],
        enable_model_summary=False,
        default_root_dir=task.folder,
    )
    trainer.fit(_Module(task), task.loader())


def _accelerate(task: Task) -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer, loader = accelerator.prepare(task.model, task.optimizer(), task.loader())
    step = 0
    with (task.folder / "log.jsonl").open("w") as file:
        for epoch in range(EPOCHS):
            for x, y in tqdm(loader):
                optimizer.zero_grad()
                loss = task.loss(model(x), y)
                accelerator.backward(loss)
                optimizer.step()
                step += 1
                if step % LOG_STEPS == 0:
                    file.write(json.dumps({"step": step, "loss": loss.item()}) + "\n")
            accelerator.save_state(str(task.folder / str(epoch)))
    accelerator.free_memory()


def _ignite(task: Task) -> None:
    optimizer = task.optimizer()
    trainer = create_supervised_trainer(task.model, optimizer, task.loss)
    ProgressBar().attach(trainer, output_transform=lambda loss: {"loss": loss})
    saved = {"model": task.model, "optimizer": optimizer, "trainer": trainer}
    saver = Checkpoint(saved, DiskSaver(str(task.folder / "checkpoints")), n_saved=2)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, saver)
    with (task.folder / "log.jsonl").open("w") as file:

        def log(engine: Any) -> None:
            state = engine.state
            file.write(json.dumps({"step": state.iteration, "loss": state.output}) + "\n")

        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=LOG_STEPS), log)
        trainer.run(task.loader(), max_epochs=EPOCHS)


def _skorch(task: Task) -> None:
    net = skorch.NeuralNet(
        task.model,
        torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        lr=LR,
        max_epochs=EPOCHS,
        batch_size=BATCH,
        iterator_train__shuffle=True,
        train_split=None,
        callbacks=[
            skorch.callbacks.ProgressBar(),
            skorch.callbacks.Checkpoint(dirname=str(task.folder), monitor=None),
        ],
    )
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        net.fit(task.x, task.y)


LOOPS = {
    "Fabric": _fabric,
    "Lightning": _lightning,
    "accelerate": _accelerate,
    "Ignite": _ignite,
    "skorch": _skorch,
}
