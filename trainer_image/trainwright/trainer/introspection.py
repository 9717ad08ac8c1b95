"""The Trainer's methods that only look at a run; and those that are not built yet."""

from __future__ import annotations

from typing import Any

from trainwright.contract import UserError
from trainwright.integrations.model_card import write_card
from trainwright.training.metrics import log_metrics, metrics_format, save_metrics, save_state


class TrainerError(UserError, RuntimeError):
    """The Trainer was given what does not go together; scripts catch it as the one or the other."""


class NotCallableError(TrainerError, TypeError):
    """Something else stands where a function is needed."""


class Introspection:
    """A part of :class:`trainwright.Trainer`."""

    model: Any
    optimizer: Any
    is_world_process_zero: Any

    log_metrics, save_metrics, save_state = log_metrics, save_metrics, save_state

    @staticmethod
    def metrics_format(metrics: dict[str, float]) -> dict[str, Any]:
        """See :func:`trainwright.training.metrics.metrics_format`."""
        return metrics_format(metrics)

    def get_tp_size(self) -> int:
        """Processes that share the matrices of a layer (tensor parallelism); not built yet, so each has its own."""
        return 1

    def get_cp_size(self) -> int:
        """Processes that share a sequence as rings (context parallelism); not built yet."""
        return 1

    def get_sp_size(self) -> int:
        """Processes that share a sequence (sequence parallelism); not built yet."""
        return 1

    def get_num_trainable_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def get_learning_rates(self) -> list[float]:
        """The rate of each parameter group."""
        return [group["lr"] for group in self._optimizer_or_refuse().param_groups]

    def get_optimizer_group(self, param: Any = None) -> Any:
        """The parameter group that holds ``param``, or the parameters of all groups."""
        groups = self._optimizer_or_refuse().param_groups
        if param is not None:
            return next(group for group in groups if any(p is param for p in group["params"]))
        return [group["params"] for group in groups]

    def _optimizer_or_refuse(self) -> Any:
        if self.optimizer is None:
            raise TrainerError("optimizer: there is none yet; call create_optimizer or train first")
        return self.optimizer

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write ``README.md`` into the output folder, on world rank 0: what the run knows, for the Hub and for people.

        Args:
            language: The Hub's code of the language, such as ``en``.
            license: The Hub's name of the license; by default that of the model that this one was made from.
            tags: Further tags.
            model_name: By default the name of the output folder.
            finetuned_from: The Hub's name of the model that this one was made from; by default where it was loaded.
            tasks: The Hub's words for what the model does; by default that of its class.
            dataset_tags: The Hub's names of the datasets; by default that of the set, if it comes from there.
            dataset: Their names for people.
            dataset_args: Their configurations.
        """
        if self.is_world_process_zero():
            given = {name: value for name, value in locals().items() if name != "self"}
            write_card(self, given)

    # -- not built yet

    def hyperparameter_search(
        self,
        hp_space: Any = None,
        compute_objective: Any = None,
        n_trials: int = 20,
        direction: str | list[str] = "minimize",
        backend: Any = None,
        hp_name: Any = None,
        **kwargs: Any,
    ) -> Any:
        raise NotImplementedError("Trainer.hyperparameter_search is not built yet; call train for each trial")

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        raise NotImplementedError("Trainer.push_to_hub is not built yet; save_model writes what can be uploaded")

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> Any:
        raise NotImplementedError("Trainer.init_hf_repo is not built yet; save_model writes what can be uploaded")
