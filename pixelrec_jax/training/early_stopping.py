"""When training stops before its last epoch."""

from dataclasses import dataclass


@dataclass
class EarlyStopping:
    """Stops after more than `patience` evaluations in a row without improvement.

    A value equal to the best one counts as an improvement.
    """

    patience: int
    best: float | None = None
    since_best: int = 0

    def update(self, value: float) -> None:
        """Records the monitored metric of the next evaluation."""
        if self.best is None or value >= self.best:
            self.best, self.since_best = value, 0
        else:
            self.since_best += 1

    @property
    def stop(self) -> bool:
        """Whether training is over."""
        return self.since_best > self.patience
