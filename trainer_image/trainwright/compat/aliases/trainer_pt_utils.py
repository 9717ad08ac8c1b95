"""``transformers.trainer_pt_utils`` for scripts that change the name of the library alone: a view of the package."""

from trainwright import __getattr__ as __getattr__  # type: ignore[attr-defined]
from trainwright.training.metrics import log_metrics as log_metrics
from trainwright.training.metrics import metrics_format as metrics_format
from trainwright.training.metrics import save_metrics as save_metrics
from trainwright.training.metrics import save_state as save_state
