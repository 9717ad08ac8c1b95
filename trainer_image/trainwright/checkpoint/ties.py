"""Weights that a model of transformers ties without saying so: its own ``save_pretrained`` refuses them.

That would be at the first checkpoint, after the steps that it should keep; so it is asked before the first step.
"""

from __future__ import annotations

import re
import sys

from torch import nn

from trainwright.checkpoint.weights import unwrap
from trainwright.contract import UserError


def check_ties(model: nn.Module) -> None:
    """Raises :class:`UserError` for a model that could not be saved, by the judgement of transformers itself."""
    modeling = sys.modules.get("transformers.modeling_utils")
    judge, model = getattr(modeling, "remove_tied_weights_from_state_dict", None), unwrap(model)
    if modeling is None or judge is None or not isinstance(model, modeling.PreTrainedModel):
        return
    try:
        judge(dict(model.state_dict()), model)
    except RuntimeError as error:
        names = ", ".join(re.findall(r"'([^']+)'", str(error).partition("]")[0])) or "some"
        raise UserError(
            f"model: {type(model).__name__} shares one weight under several names ({names}) and does not say so, and "
            "could not be saved; name all but one in its _tied_weights_keys, or give each a copy of its own"
        ) from None
