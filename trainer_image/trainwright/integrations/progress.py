"""Shows a run's progress to a person: a progress bar, or printed logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainwright.callbacks.callback import TrainerCallback
from trainwright.callbacks.state import TrainerControl, TrainerState

if TYPE_CHECKING:
    from trainwright.arguments import TrainingArguments


class ProgressCallback(TrainerCallback):
    """A progress bar for training and one for each evaluation, on world rank 0."""

    def __init__(self, max_str_len: int = 100) -> None:
        self.training_bar: Any = None
        self.prediction_bar: Any = None
        self.max_str_len = max_str_len
        self.current_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.current_step = 0
        if state.is_world_process_zero:
            self.training_bar = _bar(total=state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.training_bar is not None:
            self.training_bar.update(state.global_step - self.current_step)
            self.current_step = state.global_step

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):  # type: ignore[no-untyped-def]
        if not state.is_world_process_zero:
            return
        if self.prediction_bar is None:
            try:
                total = len(eval_dataloader)
            except TypeError:
                return
            self.prediction_bar = _bar(total=total, leave=self.training_bar is None)
        self.prediction_bar.update(1)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._close_prediction_bar()

    def on_predict(  # type: ignore[override] # the signature of Hugging Face's
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._close_prediction_bar()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.training_bar is not None:
            shown = {name: self._shown(value) for name, value in (logs or {}).items() if name != "total_flos"}
            self.training_bar.write(str(shown))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.training_bar is not None:
            self.training_bar.close()
            self.training_bar = None

    def _shown(self, value: Any) -> Any:
        if isinstance(value, str) and len(value) > self.max_str_len:
            return f"[{len(value)} characters, more than max_str_len={self.max_str_len}]"
        return f"{value:.4g}" if isinstance(value, float) else value

    def _close_prediction_bar(self) -> None:
        if self.prediction_bar is not None:
            self.prediction_bar.close()
            self.prediction_bar = None


def _bar(**kwargs: Any) -> Any:
    from tqdm.auto import tqdm

    return tqdm(dynamic_ncols=True, **kwargs)


class PrinterCallback(TrainerCallback):
    """Prints the logs, on local rank 0."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_local_process_zero and logs is not None:
            shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in logs.items()}
            shown.pop("total_flos", None)
            print(shown, flush=True)
