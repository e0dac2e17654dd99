"""MLflow: a run of the experiment ``nas`` on the server that ``MLFLOW_TRACKING_URI`` names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

RUN_ID = "mlflow.txt"  # in the training's directory, so that a resumed training goes on with it


class MLflowLogger:
    """Logs to an MLflow run, through a client: the run that a caller has open is left alone."""

    def __init__(self, directory: Path) -> None:
        import mlflow

        self._client = mlflow.MlflowClient()
        file = directory / RUN_ID
        if file.exists():
            self._run = file.read_text(encoding="utf-8").strip()
            return
        experiment = self._client.get_experiment_by_name("nas")
        number = (
            self._client.create_experiment("nas")
            if experiment is None
            else experiment.experiment_id
        )
        self._run = self._client.create_run(
            number, run_name="/".join(directory.resolve().parts[-2:])
        ).info.run_id
        directory.mkdir(parents=True, exist_ok=True)
        file.write_text(self._run, encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")
