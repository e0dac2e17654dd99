"""Training of one architecture from scratch, and its export."""

from __future__ import annotations

import torch

from nas.workflows.finishing import card_figures, export_trained, qualities
from nas.workflows.reporting import curves, facts
from nas.workflows.with_images import ImageRun, shown
from predictors.counts import count_architecture
from results.report.data import Chosen, ReportData
from results.store import EXPORT
from search_space import Architecture
from supernet import build

NETWORK = "network"


class NetworkTraining(ImageRun):
    """One architecture, trained from random weights with the settings of ``config.train``."""

    def all_phases(self) -> ReportData:
        assert self.config.architecture is not None
        architecture = Architecture.from_dict(self.config.architecture)
        self.open_data(architecture.resolution)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            network = build(
                architecture, self.num_classes, drop_path_rate=self.config.train.drop_path_rate
            )
        with self.phase("training the network") as progress:
            self.train_network(network, self.config.train, NETWORK, shown(progress))
        quality = qualities(network, self.data, self.config.train.amp)
        accuracy = quality["test"].accuracy
        self.console.say(f"  test accuracy {accuracy:.2%}")
        counts = count_architecture(architecture, self.num_classes)
        with self.phase("exporting"):
            exports = export_trained(
                network,
                self.path / EXPORT / architecture.digest,
                {"test accuracy": f"{accuracy:.2%}", **card_figures(counts)},
                self.data,
                self.config,
            )
        data = ReportData(
            summary={"data": self.config.data},
            chosen=Chosen(
                digest=architecture.digest,
                architecture=architecture.to_dict(),
                predicted={name: float(value) for name, value in counts.items()},
                test_accuracy=accuracy,
                quality={split: value.to_dict() for split, value in quality.items()},
                class_names=self.data.class_names,
                exports=tuple(exports),
                reason="it was the one to train",
            ),
            training=curves(self.path, NETWORK),
            **facts(self.directory, self.config),
        )
        return self.finish(data)
