"""TRL's SFTTrainer with an eval_loss that does not depend on the batch size."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model_state_dict
from peft.helpers import disable_input_dtype_casting
from torch.utils.data import DataLoader, RandomSampler
from transformers import PreTrainedModel, PrinterCallback
from trl import SFTTrainer
from typing_extensions import override

from lamina.data.tokenization import IGNORED
from lamina.depth.reduction import blueprint
from lamina.errors import OutputError
from lamina.heal.callbacks.clock import SPEED, SPENT, TRAINED, StepClock
from lamina.heal.callbacks.saving import Checkpointing, EndAfterStep, saved_best
from lamina.heal.kernels import MASKED, undoing_patches
from lamina.heal.sampling import ShuffledThenPadding, set_epoch, with_padding_rows
from lamina.measure.evaluate import TOLERANCES, perplexity
from lamina.measure.protocol import ModelRef
from lamina.measure.speed import compute_peak, training_flops
from lamina.runtime import distributed
from lamina.runtime.attributes import attributes
from lamina.runtime.checkpoints import STATE, rotate
from lamina.runtime.console import Stage, stage
from lamina.runtime.files import disk_errors, partial_path, replacing
from lamina.runtime.sizes import state_bytes, trained_weights, weight_bytes
from lamina.weights.header import read_header

UNLOGGED = "unlogged"
"""Key in a checkpoint's state of the losses summed since the last log, which transformers 5.17
forgets: the next loss logged after resuming would be another."""


LOSSES = ("loss", "eval_loss")
"""Values of metric_for_best_model that mean eval_loss."""


class TokenLossTrainer(SFTTrainer):
    """An SFTTrainer whose eval_loss is a mean over tokens.

    The stock one averages batch means, so the loss and the choice of the best checkpoint depend on
    the batch size (transformers issue 39241, open in 5.17).
    """

    further_phases: ClassVar[tuple[str, ...]] = ()
    """Parts of a step that the clock counts apart."""
    _evaluating: Stage

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.clock = StepClock(training_flops(self.model), *self.further_phases)
        self.remove_callback(PrinterCallback)
        self.add_callback(self.clock)
        self.add_callback(Checkpointing())
        self._ending = EndAfterStep()
        self.add_callback(self._ending)
        self._token_nll = torch.zeros(2, dtype=torch.float64)
        self._saving_in: Path | None = None

    @override
    def train(self, *arguments: Any, **options: Any) -> Any:
        # PEFT 0.21 casts an adapter's input to float32 and autocast casts it back: two copies, one
        # of which stays for the backward pass. Under autocast the products are the same without
        # both casts, except in DoRA, which computes more in between.
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        kernels = undoing_patches(base) if self.args.use_liger_kernel else nullcontext()
        has_dora = any(getattr(module, "lora_variant", None) for module in self.model.modules())
        no_cast = (self.args.bf16 or self.args.fp16) and not has_dora
        casts = disable_input_dtype_casting(self.model, active=no_cast)
        with kernels, casts, self._ending.watching():
            return super().train(*arguments, **options)

    def trainable_parameters(self) -> int:
        """Return the number of trained weights."""
        return sum(parameter.numel() for parameter in trained_weights(self.model))

    def figures(self) -> dict[str, Any]:
        """Return a finished training's metrics, named as in result.json."""
        loss = self.kept_loss()
        return {
            "eval_loss": loss,
            "perplexity": perplexity(loss),
            "train_tokens": self.state.num_input_tokens_seen,
            TRAINED: self.clock.trained_tokens(),
            "train_seconds": self.clock.train_seconds(),
            "seconds": self.clock.seconds,
            **self.speed(),
        }

    def kept_loss(self) -> float | None:
        """Return the eval_loss of the weights that final/ gets; None if it is not known."""
        args, state = self.args, self.state
        if args.load_best_model_at_end and args.metric_for_best_model in LOSSES:
            return state.best_metric
        kept = state.best_global_step if args.load_best_model_at_end else state.global_step
        entries = (each for each in reversed(state.log_history) if each["step"] == kept)
        return next((each["eval_loss"] for each in entries if "eval_loss" in each), None)

    def tolerance(self, final: ModelRef) -> float | None:
        """Return how far final/'s loss may be from the best checkpoint's, as a share of 1 + it.

        None if they are not comparable: the last weights were saved, another metric chose them, a
        router's loss was added, or only one of them is in four bits.
        """
        args, config = self.args, self.model.config
        if (
            not args.load_best_model_at_end
            or args.metric_for_best_model not in LOSSES
            or self.aux_loss_enabled
            or getattr(self.model, "is_loaded_in_4bit", False) != final.in_4bit
        ):
            return None
        rounded = args.bf16 or args.fp16 or args.tf32 or final.in_4bit or final.dtype != "float32"
        kernels = args.use_liger_kernel or args.torch_compile
        own = config._attn_implementation not in MASKED
        return TOLERANCES["rounded" if rounded or kernels or own else "same"]

    def speed(self) -> dict[str, float | None]:
        """Return the speed after warm-up so far; all processes must call it."""
        reading = self.clock.reading()
        if reading is None:
            return dict.fromkeys(SPEED)
        weights = str(next(iter(self.model.parameters())).dtype).removeprefix("torch.")
        peak = compute_peak(bf16=self.args.bf16, fp16=self.args.fp16, weights=weights)
        return reading.speed(peak)

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self.clock.spent())
            counted = {**self.speed(), TRAINED: self.clock.trained_tokens()}
            logs.update({name: value for name, value in counted.items() if value is not None})
        # Given a start, transformers adds tokens/s of another definition: over all time so far.
        super().log(logs)

    def best_model(self) -> PreTrainedModel:
        """Return the unwrapped model with the best checkpoint's weights.

        All processes must call it; if weights are sharded, only the first gets the whole model.
        """
        model = self.accelerator.unwrap_model(self.model)
        if not self.is_fsdp_enabled:
            return model
        weights = self.accelerator.get_state_dict(self.model)
        if not distributed.is_first():
            return model
        # FSDP2 replaces the model's class by one of its own.
        plain, dtype = type(blueprint(model.config)), next(iter(weights.values())).dtype
        return plain.from_pretrained(None, config=model.config, state_dict=weights, dtype=dtype)

    @override
    def _get_dataloader(
        self, dataset: Dataset, description: str, batch_size: int, **options: Any
    ) -> DataLoader:
        # Accelerate 1.15 completes the last batches of several processes by repeating rows.
        rows, at_once = dataset, batch_size * distributed.world_size()
        # transformers 5.17 would leave out evaluation rows, too.
        drops = self.args.dataloader_drop_last and options.get("is_training", False)
        if distributed.world_size() > 1 and not drops:
            dataset = with_padding_rows(rows, at_once, self.processing_class.pad_token_id)
            if isinstance(options["sampler_fn"](rows), RandomSampler):
                seed = self.args.data_seed
                options["sampler_fn"] = lambda _: ShuffledThenPadding(rows, at_once, seed)
        with attributes(self.args, dataloader_drop_last=drops):
            return super()._get_dataloader(dataset, description, batch_size, **options)

    @override
    def _track_num_input_tokens(self, inputs: dict[str, torch.Tensor]) -> None:
        super()._track_num_input_tokens({**inputs, "attention_mask": _token_mask(inputs)})
        self.clock.count(inputs)

    @override
    def get_batch_samples(self, *arguments: Any, **options: Any) -> Any:
        self.clock.switch("data")
        batches = super().get_batch_samples(*arguments, **options)
        self.clock.switch("forward_backward")
        return batches

    @override
    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        self.clock.switch("optimizer")
        return super()._clip_grad_norm(model)

    @override
    def evaluate(self, *arguments: Any, **options: Any) -> Any:
        with self.clock.during("evaluation"):
            return super().evaluate(*arguments, **options)

    @override
    def _load_from_checkpoint(self, *arguments: Any, **options: Any) -> None:
        has_adapter = isinstance(self.model, PeftModel)
        file = Path(arguments[0]) / f"{'adapter_' if has_adapter else ''}model.safetensors"
        with _fitting(file):
            if file.is_file() and not self.is_fsdp_enabled:
                # transformers 5.17 and PEFT 0.21 silently keep the old value of a missing weight.
                own = dict(self.model.named_parameters())
                if has_adapter:
                    own = get_peft_model_state_dict(self.model, save_embedding_layers=False)
                if absent := own.keys() - read_header(file).keys():
                    raise ValueError(f"it has no {min(absent)}")
            super()._load_from_checkpoint(*arguments, **options)

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _fitting(Path(checkpoint or "") / "optimizer.pt"):
            super()._load_optimizer_and_scheduler(checkpoint)

    @override
    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving_in or self.args.output_dir)

    @override
    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        # transformers 5.17 writes in place: an interrupted save looks like a checkpoint.
        folder = Path(self.args.output_dir)
        target = folder / f"checkpoint-{self.state.global_step}"
        saving = replacing(target) if self.args.should_save else nullcontext(partial_path(target))
        errors = disk_errors(folder, "output_dir", self._checkpoint_bytes)
        shown = stage(f"saving {target.name}")
        with self.clock.during("save"), errors, saving as partial, shown:
            self.accelerator.wait_for_everyone()
            self.state.stateful_callbacks[UNLOGGED] = self.unlogged()
            self.state.stateful_callbacks[SPENT] = self.clock.state()
            with attributes(self, _saving_in=partial.parent):
                super()._save_checkpoint(model, trial)
            self.state.best_model_checkpoint = saved_best(self.state, folder, target)
            if self.args.should_save:
                self.state.save_to_json(str(partial / STATE))
            del self.state.stateful_callbacks[UNLOGGED]
            self.accelerator.wait_for_everyone()
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            # transformers 5.17 removes file by file: what a kill left would look like a checkpoint.
            rotate(folder, self.args.save_total_limit, self.state.best_model_checkpoint)

    def unlogged(self) -> dict[str, Any]:
        """Return a checkpoint's sums over the steps since the last log, of all processes."""
        loss = distributed.summed([self._tr_loss.item()])[0] / distributed.world_size()
        return {"loss": loss, "since": self._globalstep_last_logged}

    def continue_log(self, unlogged: dict[str, Any]) -> None:
        """Take up a checkpoint's `unlogged`."""
        self._tr_loss += float(unlogged["loss"])
        self._globalstep_last_logged = int(unlogged["since"])

    @override
    def _save_rng_state(self, output_dir: str) -> None:
        # Each process writes its own, and would recreate the folder that the first one removed
        # because the disk is full.
        self.accelerator.wait_for_everyone()
        super()._save_rng_state(output_dir)

    def _checkpoint_bytes(self) -> int:
        """Return the approximate bytes of one checkpoint."""
        has_adapter = isinstance(self.model, PeftModel)
        saved = trained_weights(self.model) if has_adapter else self.model.parameters()
        return weight_bytes(saved) + state_bytes(self.optimizer.state)

    @override
    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        self._token_nll = torch.zeros(2, dtype=torch.float64)
        text = f"evaluating step {self.state.global_step}"
        with stage(text, len(self.eval_dataset), "sequences") as self._evaluating:
            output = super().evaluation_loop(*arguments, **options)
        nll, tokens = self.accelerator.reduce(self._token_nll.to(self.args.device)).tolist()
        prefix = options.get("metric_key_prefix", "eval")
        output.metrics[f"{prefix}_loss"] = nll / tokens
        return output

    @override
    def prediction_step(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        tokens = int((inputs["labels"][:, 1:] != IGNORED).sum())
        self._evaluating.advance(len(inputs["labels"]) * distributed.world_size())
        with self._plain_loss():
            loss, logits, labels = super().prediction_step(model, inputs, *arguments, **options)
        if tokens:  # none in a batch of padding rows
            self._token_nll += torch.tensor([float(loss) * tokens, tokens], dtype=torch.float64)
        return loss, logits, labels

    @contextmanager
    def _plain_loss(self) -> Iterator[None]:
        """Evaluate the batch's mean negative log-likelihood, whatever the training loss is.

        Otherwise transformers 5.17 smooths labels in evaluation, too, and gives each of several
        processes its share of the overall mean; TRL and liger-kernel weight tokens if
        loss_type=dft.
        """
        plain: dict[str, Any] = {"average_tokens_across_devices": False}
        if self.args.use_liger_kernel or self.args.loss_type == "dft":
            plain["loss_type"] = "nll"
        without = attributes(self, label_smoother=None, compute_loss_func=None)
        with without, attributes(self.args, **plain):
            yield

    @override
    def _run_epoch(self, *arguments: Any, **options: Any) -> None:
        # Resuming after the last step does nothing; transformers 5.17 would take one more step.
        if unlogged := self.state.stateful_callbacks.pop(UNLOGGED, None):
            with _fitting(Path(options["resume_from_checkpoint"]) / STATE):
                self.continue_log(unlogged)
        if self.state.global_step < self.state.max_steps:
            set_epoch(options["train_dataloader"], options["epoch"])
            super()._run_epoch(*arguments, **options)

    @override
    def create_model_card(self, *arguments: Any, **options: Any) -> None:
        """Write no card beside checkpoints: final/ has one that says what was removed."""


def _token_mask(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return a batch's mask of tokens: 0 for padding.

    Packs have no mask, and transformers would take their end tokens for padding if the tokenizer
    pads with them.
    """
    labelled = inputs["labels"] != IGNORED
    mask = inputs.get("attention_mask")
    if distributed.world_size() == 1:
        return torch.ones_like(labelled, dtype=torch.long) if mask is None else mask
    # With several processes there are padding rows, which have no trained token.
    if mask is not None or "position_ids" not in inputs:
        rows = labelled.any(dim=1, keepdim=True).expand_as(labelled).long()
        return rows if mask is None else rows * mask
    documents = (inputs["position_ids"] == 0).flatten().cumsum(0).view_as(labelled)
    return torch.isin(documents, documents[labelled]).long()


@contextmanager
def _fitting(part: Path) -> Iterator[None]:
    """Name the part of a checkpoint that does not fit the model or its optimizer."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise OutputError(f"{part} does not fit the model: {reason}") from error
