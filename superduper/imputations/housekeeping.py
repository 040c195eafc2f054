"""What a worker removes now and then: sealed objects, weights and checkpoints that nobody names."""

import logging
import threading

from superduper import settings
from superduper.imputations.fitting.checkpoints import FitCheckpoints
from superduper.imputations.kept_predictions import KeptPredictions
from superduper.store.artifacts import ArtifactStore

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 3_600.0
MIN_AGE_HOURS = 24.0


class Housekeeping:
    """Collects garbage; one of the services of a worker. Several at once do no harm."""

    def __init__(
        self,
        artifacts: ArtifactStore,
        checkpoints: FitCheckpoints,
        predictions: KeptPredictions,
        *,
        interval_seconds: float = INTERVAL_SECONDS,
        min_age_hours: float = MIN_AGE_HOURS,
    ) -> None:
        self.artifacts = artifacts
        self.checkpoints = checkpoints
        self.predictions = predictions
        self.interval_seconds = interval_seconds
        self.min_age_hours = min_age_hours

    def run(self, stop: threading.Event) -> None:
        """Collect, after every interval, until told to stop."""
        while not stop.wait(self.interval_seconds):
            removed = self.artifacts.collect_garbage(self.min_age_hours)
            removed += self.checkpoints.collect(self.min_age_hours)
            if removed:
                logger.info("removed %d files that nothing refers to", removed)
            expired = self.predictions.collect(settings.get_number("OUTPUTS_HOURS"))
            if expired:
                logger.info("removed %d parts of predictions that nobody fetches any more", expired)
