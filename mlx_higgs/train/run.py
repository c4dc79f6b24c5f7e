"""One run from its options: load, read, train, log and save."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..adapters import check_base, read_adapter, save_adapter
from ..cli import note
from ..loading import Higgs
from ..ranks import ALONE, Ranks, processes
from ..types import GenerationError, InputError
from .batches import Schedule
from .loop import Plan, Score, Trainer, train
from .methods import build_optimizer, prepare
from .options import Options
from .report import Report
from .samples import Sample
from .setup import (
    adapter_config,
    first_weights,
    load_higgs,
    load_trainable,
    loss_weights,
    output_folder,
    read_data,
)
from .state import STATE, has_state, load_state, save_state

if TYPE_CHECKING:
    from ..server import HiggsAudioServer, SpeechRequest


def run_training(options: Options) -> None:
    """Everything ``python -m mlx_higgs.train`` does.

    Raises:
        InputError: options or data that cannot be used. GenerationError: a loss that is no number.
    """
    started, ranks = time.monotonic(), processes()
    with ranks.together():
        folder = output_folder(options)
        higgs = load_higgs(options)
        data = read_data(options, higgs) if ranks.first else {}
    with ranks.together():  # clips that rank 0 encoded need not be encoded again
        data = data or read_data(options, higgs)
        run = Run(options, folder, higgs, data, ranks)
    run.check_alike()
    if options.train:
        run.train(started)
    if options.test:
        run.test()


class Run:
    """One run: the trainer, its log and its folder."""

    def __init__(
        self,
        options: Options,
        folder: Path,
        higgs: Higgs,
        data: dict[str, list[Sample]],
        ranks: Ranks = ALONE,
    ):
        self.options, self.folder, self.higgs, self.data = options, folder, higgs, data
        self.ranks = ranks  # of which the first writes and speaks
        self.model: Any = higgs.model
        masks = prepare(self.model, options)
        self.config = adapter_config(options, self.model)
        if start := first_weights(options, folder):
            load_trainable(self.model, start)
        elif not options.train:
            note(f"{folder} holds no adapter: the base itself is scored.")
        self.trainer = Trainer(
            self.model,
            build_optimizer(options),
            Schedule(data.get("train") or data["test"], options.batch_size, options.seed),
            loss_weights(options, self.model),
            accumulate=options.grad_accumulation_steps,
            code_noise=options.code_noise,
            grad_clip=options.grad_clip,
            seed=options.seed,
            masks=masks,
            ranks=ranks,
        )
        self.minutes, self._saved = 0.0, 0  # of earlier sittings; the last iteration saved
        self._server = _speaker(options, higgs) if ranks.first else None
        if has_state(folder) and options.resume:
            check_base(read_adapter(folder), self.model)
            facts = load_state(folder, self.model, self.trainer.optimizer, self.config)
            self.trainer.iteration = self._saved = facts["iteration"]
            self.minutes = facts["minutes"]
            self.trainer.tally.restore(facts["tally"])
            if facts["data"] != self._data_facts():
                note("The training data has changed since the run was saved.")

    def check_alike(self) -> None:
        """Raises InputError if the ranks do not begin with the same samples and iteration."""
        own = [*self._data_facts(), self.trainer.iteration]
        first = self.ranks.told(own)
        with self.ranks.together():
            if own != first:
                raise InputError(
                    f"Rank {self.ranks.rank} has {own[0]} samples of {own[1]} positions and is at "
                    f"iteration {own[2]}, rank 0 has {first[0]} of {first[1]} and is at "
                    f"{first[2]}: all need the same --data and --adapter-path."
                )

    def train(self, started: float) -> None:
        from tqdm import tqdm

        options, trainer = self.options, self.trainer
        self._announce()
        if trainer.iteration >= options.iters:
            note(f"All {options.iters} iterations are done: raise --iters for more.")
            return
        self._started = time.monotonic()
        self._report: Report | None = None
        if self.ranks.first:
            if not options.resume:
                (self.folder / STATE).unlink(missing_ok=True)
            self._report = Report(
                self.folder, self.model.delay.num_codebooks, trainer.iteration, options.tensorboard
            )
        limit = options.max_minutes
        plan = Plan(
            options.iters,
            options.steps_per_report,
            options.steps_per_eval,
            options.save_every,
            self._log,
            self._validate,
            self._save,
            self._advance,
            float("inf") if limit is None else started + 60 * limit,
        )
        try:
            with tqdm(
                total=options.iters, initial=trainer.iteration, unit="it", disable=None
            ) as self._bar:
                finished = train(trainer, plan)
        except KeyboardInterrupt:
            note(self._how_to_resume("Interrupted"))
            raise
        finally:
            if self._report is not None:
                self._report.close()
        if not finished:
            note(self._how_to_resume(f"Stopped after {limit:g} minutes"))
            return
        note(f"Done: {self.folder} holds the trained weights.")

    def _how_to_resume(self, why: str) -> str:
        return (
            f"{why} at iteration {self.trainer.iteration} of {self.options.iters}. {self.folder} "
            f"holds iteration {self._saved}: the same command with --resume goes on from there."
        )

    def _announce(self) -> None:
        trained, total = _size(self.model.trainable_parameters()), _size(self.model.parameters())
        samples = self.data["train"]
        note(
            f"{self.options.fine_tune_type}: {trained:,} of {total:,} parameters are trained on "
            f"{len(samples):,} samples ({sum(map(len, samples)):,} positions)."
        )
        if self.options.text_loss_weight and not self.trainer.weights.text:
            note("The checkpoint has no text head: the text's loss is left out.")
        if self.options.resume and not self.trainer.iteration:
            note(f"{self.folder} holds no run to go on with: this one begins.")
        if self.trainer.iteration:
            note(f"Going on from iteration {self.trainer.iteration}.")

    def _data_facts(self) -> list[int]:
        samples = self.data.get("train", [])
        return [len(samples), sum(map(len, samples))]

    def _advance(self, score: Score) -> None:
        self._bar.set_postfix_str(f"loss {score.loss:.3f}", refresh=False)
        self._bar.update()

    def _spent(self) -> float:
        return self.minutes + (time.monotonic() - self._started) / 60

    def _log(self, norm: float, seconds: float) -> None:
        tally, rate = self.trainer.tally, self.trainer.optimizer.learning_rate
        score, speed = tally.score(), tally.positions / seconds
        self._add(
            "train",
            score,
            learning_rate=float(rate),
            gradient_norm=norm,
            positions_per_second=speed,
            peak_gb=mx.get_peak_memory() / 1e9,
        )
        if self._bar.disable:  # no terminal: lines instead
            note(
                f"iteration {self.trainer.iteration}: train {describe(score)}, "
                f"{speed:,.0f} positions/s"
            )

    def _add(self, split: str, score: Score, **more: float) -> None:
        if self._report is None:
            return
        books = {f"audio_{k}": float(value) for k, value in enumerate(score.books)}
        if self.trainer.weights.text:
            books["text"] = score.text
        self._report.add(
            iteration=self.trainer.iteration,
            epoch=self.trainer.epoch,
            split=split,
            loss=score.loss,
            minutes=self._spent(),
            **books,
            **more,
        )

    def _validate(self) -> None:
        options = self.options
        if samples := self.data.get("valid"):
            score = self.trainer.score(samples, options.batch_size, options.val_batches)
            self._add("valid", score)
            self._tell(f"iteration {self.trainer.iteration}: valid {describe(score)}")
        if self._server:
            self._speak()

    def _tell(self, line: str) -> None:
        self._bar.clear()
        note(line)

    def _speak(self) -> None:
        """The fixed prompt as a WAV; a model that cannot speak yet is no error."""
        from .. import audio

        assert self._server
        self.model.eval()
        try:
            speech = self._server.start(eval_request(self.options)).run()
        except GenerationError as error:
            self._tell(f"iteration {self.trainer.iteration}: no speech yet ({error})")
            return
        path = self.folder / f"{self.trainer.iteration:07}.wav"
        audio.write(path, speech.pcm, speech.sampling_rate)

    def _save(self) -> None:
        self.trainer.check()
        facts = {
            **self.config,
            "iteration": self.trainer.iteration,
            "minutes": self._spent(),
            "tally": self.trainer.tally.facts(),
            "data": self._data_facts(),
        }
        if self.ranks.first:
            # the state last: a run that is killed between the two goes on from the one before
            save_adapter(self.folder, self.model, self.config, self.trainer.iteration)
            save_state(self.folder, self.model, self.trainer.optimizer, facts)
        self._saved = self.trainer.iteration

    def test(self) -> None:
        options = self.options
        score = self.trainer.score(self.data["test"], options.batch_size, options.test_batches)
        note(f"test {describe(score)}")


def _speaker(options: Options, higgs: Higgs) -> HiggsAudioServer | None:
    """What says the fixed prompt, which is checked now."""
    if not options.eval_prompt:
        return None
    from ..server import HiggsAudioServer

    server = HiggsAudioServer(higgs)
    server.start(eval_request(options))
    return server


def eval_request(options: Options) -> SpeechRequest:
    """The fixed prompt in its voice: a clip, or a name."""
    from ..server import SpeechRequest

    voice = options.eval_voice
    is_clip = voice is not None and Path(voice).is_file()
    return SpeechRequest(
        options.eval_prompt or "",
        reference_audio_path=voice if is_clip else None,
        voice=None if is_clip else voice,
        seed=options.seed,
    )


def _size(parameters: Any) -> int:
    return sum(array.size for _, array in tree_flatten(parameters))  # type: ignore[union-attr]


def describe(score: Score) -> str:
    """A line about it, for a person."""
    books = " ".join(f"{value:.3f}" for value in score.books)
    return f"loss {score.loss:.4f} (codebooks {books}; text {score.text:.3f})"
