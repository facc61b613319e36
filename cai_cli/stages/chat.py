"""`cai chat`: talk to one model, or to several side by side; what was said can be saved as samples.

    cai chat --model runs/demo/sl-cai --model runs/demo/rl-cai
    cai chat --model rl-cai/ --prompt "How do I bake bread?" > reply.txt

Each model has a history of its own and hears the same turns. At a terminal lines begin with `>`, and what begins with
a slash is for the command itself: /help lists it. Where stdin is a pipe each line is a turn, and stdout has the
replies alone; exit 1 says that one is missing. A reply comes when it is written: engines do not stream.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cai_cli.artifacts.claims import check_alone
from cai_cli.artifacts.locks import hold
from cai_cli.artifacts.manifest import begin_manifest, write_manifest
from cai_cli.artifacts.places import manifest_path
from cai_cli.console.line_reading import at_a_terminal, piped_lines, typed_lines
from cai_cli.console.messages import fail, say, shortened, show_text, visible, warn
from cai_cli.console.options import (
    MODEL,
    ChatTemplateKwargs,
    DeviceOptions,
    EngineOptions,
    ServingOptions,
    flag,
)
from cai_cli.console.side_by_side import Shown, short_names, show_side_by_side, waiting
from cai_cli.console.slash_commands import command_of, help_lines, text_of
from cai_cli.engines.base import LENGTH, EngineSettings
from cai_cli.engines.dialogue import Dialogue, Reply, Speaker, has_system_role
from cai_cli.engines.open import check_engine, open_engine
from cai_cli.errors import CaiError, RunError, UserError
from cai_cli.models.devices import check_device
from cai_cli.models.templates import template_kwargs
from cai_cli.processes.interruption import ctrl_c_comes_back
from cai_cli.processes.ranks import world_size
from cai_cli.prompting.hygiene import EMPTY, LEAKED_ROLE, OVERLONG_PROMPT
from cai_cli.rows.json_text import is_unicode
from cai_cli.rows.jsonl import write_rows
from cai_cli.rows.storage import storage_error

COMMANDS = {
    "/save": ("FILE.jsonl", "write all replies as samples, for cai score, label --pairs, sft, inspect"),
    "/again": ("", "another draw of the last replies; the conversation goes on with it"),
    "/undo": ("", "take the last turn back"),
    "/reset": ("", "begin a new conversation; /save still writes what was said before"),
    "/system": ("TEXT", "a system text in front of the conversation; without TEXT none"),
    "/help": ("", "this list"),
    "/quit": ("", "leave, as Ctrl-D does"),
}
REASONS = {
    OVERLONG_PROMPT: "the conversation fills its context — /reset begins anew, /undo takes a turn back",
    EMPTY: "it ended its turn at once — say it in other words",
    LEAKED_ROLE: "it went on in your place at once — say it in other words",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    hardware: DeviceOptions
    engines: EngineOptions
    serving: ServingOptions
    model: Annotated[
        list[str], flag("Model", "A language model to talk to. Repeatable: side by side."), MODEL
    ]
    prompt: Annotated[str | None, flag("Data", "Say this once, write the reply to stdout, and end.")] = None
    system: Annotated[str | None, flag("Data", "A system text in front of the conversation.")] = None
    max_new_tokens: Annotated[int, flag("Generation", "Longest reply.", min=1)] = 512
    temperature: Annotated[
        float, flag("Generation", "Sampling temperature (paper: 1); 0 is greedy.", min=0.0)
    ] = 1.0
    chat_template_kwargs: ChatTemplateKwargs = None
    seed: Annotated[
        int, flag("Generation", "Every draw is keyed by it: the same words get the same reply.")
    ] = 0


def run(options: Options) -> None:
    """Talk to one model, or to several side by side.

    Example: cai chat --model runs/demo/sl-cai --model runs/demo/rl-cai

    Once and out: cai chat --model rl-cai/ --prompt "How do I bake bread?" > reply.txt

    A served model: cai chat --engine openai --base-url http://127.0.0.1:8000/v1 --model NAME

    Each line of a file is a turn: cai chat --model rl-cai/ --temperature 0 < turns.txt
    """
    check(options)
    settings = settings_of(options)
    for path in options.model:
        check_engine(path, settings)
    check_device(options.hardware.device, dry_run=False)
    speakers = []
    with waiting() as doing:
        for path, name in zip(options.model, short_names(options.model), strict=True):
            doing(f"loading {name}")
            speakers.append(Speaker(path, name, open_engine(path, settings)))
    dialogue = Dialogue(speakers, options.seed, options.temperature, options.max_new_tokens)
    talk = Talk(options, dialogue)
    if options.system:
        talk.set_system(options.system)
    if options.prompt is not None:
        talk.once(options.prompt)
    elif at_a_terminal():
        talk.at_the_terminal()
    else:
        talk.piped()


def check(options: Options) -> None:
    """Raise UserError for what makes no conversation, before a model is loaded."""
    if world_size() > 1:
        raise UserError("cai chat: several processes cannot share a terminal", "start it without a launcher")
    places = [str(Path(path).resolve()) if Path(path).is_dir() else path for path in options.model]
    twice = next(
        (path for path, place in zip(options.model, places, strict=True) if places.count(place) > 1), None
    )
    if twice:
        raise UserError(
            f"--model {twice}: is named twice, and would say the same twice", "/again draws another reply"
        )
    share = options.serving.gpu_memory_utilization
    if options.engines.engine == "vllm" and share * len(options.model) > 1:
        told = f"--gpu-memory-utilization {share:g}: {len(options.model)} models would each take it"
        raise UserError(told, f"give {0.9 / len(options.model):.2f}, or name one model")
    for name in ("prompt", "system"):
        text = getattr(options, name)
        if text is not None and not text.strip():
            raise UserError(f"--{name}: is empty", "leave it out, or say something")
        if text is not None and not is_unicode(text):
            raise UserError(f"--{name}: not UTF-8 text", "text is read as UTF-8: convert it with iconv")


def settings_of(options: Options) -> EngineSettings:
    own = EngineSettings(
        device=options.hardware.device,
        dtype=options.hardware.dtype,
        temperature=options.temperature,
        template_kwargs=template_kwargs(options.chat_template_kwargs),
    )
    return own.of_writer(options.engines, options.serving)


class Talk:
    """A conversation under way. `missing`: how many replies there should be and are not; `saved`: files that are
    this one's, and may be written again.
    """

    def __init__(self, options: Options, dialogue: Dialogue) -> None:
        self.options, self.dialogue = options, dialogue
        self.missing = 0
        self.saved: set[Path] = set()
        self.started = time.monotonic()

    # The three ways to talk

    def once(self, text: str) -> None:
        """Raises RunError where a reply is missing, when the others are written."""
        self.dialogue.say(text)
        shown = self.answer()
        self.write(shown)
        if faults := [f"{one.name}: {one.fault}" for one in shown if one.fault]:
            raise RunError("; ".join(faults))

    def piped(self) -> None:
        """Raises RunError at the end where something failed."""
        failed = 0
        for line in piped_lines():
            try:
                if not self.take(line, terminal=False):
                    break
            except CaiError as error:
                fail(error.message, error.hint)
                failed += 1
        if failed or self.missing:
            told = [f"{self.missing} replies are missing"] * (self.missing > 0)
            raise RunError(" and ".join([*told, *[f"{failed} commands failed"] * (failed > 0)]))

    def at_the_terminal(self) -> None:
        names = ", ".join(speaker.name for speaker in self.dialogue.speakers)
        say(f"{names}: /help lists what else can be said, Ctrl-D leaves")
        for speaker in self.dialogue.speakers:
            if speaker.engine.renderer.reply_form != "chat":
                say(f"{speaker.name} has no chat template: it continues a transcript (Human:, Assistant:)")
        with ctrl_c_comes_back():
            for line in typed_lines("Ctrl-C once more leaves, as Ctrl-D and /quit do"):
                try:
                    if not self.take(line, terminal=True):
                        return
                except CaiError as error:
                    fail(error.message, error.hint)
                except KeyboardInterrupt:
                    say("stopped")

    # Turns

    def take(self, line: str, terminal: bool) -> bool:
        """Do what a line asks for; returns whether to go on."""
        line = line.strip()
        text = text_of(line)
        if text is None:
            return self.command(*command_of(line, COMMANDS), terminal)
        if text:
            self.dialogue.say(text)
            self.show(self.answer(), terminal)
        return True

    def answer(self) -> list[Shown]:
        """A reply of each model to the last turn, or why there is none. A turn without any is taken back."""
        shown: list[Shown] = []
        speakers = self.dialogue.speakers
        with suppress(KeyboardInterrupt), waiting() as doing:
            for number, speaker in enumerate(speakers):
                written = f" ({number} of {len(speakers)} have)" if number else ""
                doing(f"{speaker.name} writes{written}, Ctrl-C stops it")
                shown.append(self.reply_of(speaker))
        shown += [
            Shown(speaker.name, fault="stopped, and nothing kept") for speaker in speakers[len(shown) :]
        ]
        if not self.dialogue.turns[-1].replies:
            self.dialogue.drop()
        return shown

    def reply_of(self, speaker: Speaker) -> Shown:
        try:
            reply = self.dialogue.reply(speaker)
        except CaiError as error:
            return Shown(speaker.name, fault=" — ".join(filter(None, (error.message, error.hint))))
        return self.shown(speaker, reply)

    def shown(self, speaker: Speaker, reply: Reply) -> Shown:
        sampled = reply.sampled
        if sampled.reason is not None:
            told = REASONS.get(sampled.reason, sampled.told or sampled.reason)
            if sampled.finish_reason == LENGTH and sampled.thinking:
                told = f"it was still thinking after {reply.limit} tokens — raise --max-new-tokens"
            return Shown(speaker.name, before=sampled.thinking, fault=f"no reply: {told}")
        note = ""
        if sampled.finish_reason == LENGTH:
            fits = reply.limit < self.options.max_new_tokens
            what = "all that fits: /reset begins anew" if fits else "--max-new-tokens"
            note = f"(cut off after {reply.limit} tokens, {what})"
        return Shown(speaker.name, sampled.text, sampled.thinking, note)

    def show(self, shown: list[Shown], terminal: bool) -> None:
        if terminal:
            show_side_by_side(shown)
            return
        self.write(shown)
        for one in shown:
            if one.fault:
                warn(f"{one.name}: {one.fault}")
                self.missing += 1

    def write(self, shown: list[Shown]) -> None:
        """The replies alone; where there are several models each has a line with its name in front."""
        named = len(self.dialogue.speakers) > 1
        for one in shown:
            if not one.fault:
                show_text(f"{visible(one.name)}:\n{one.text}\n" if named else one.text)

    # Commands

    def command(self, word: str, rest: str, terminal: bool) -> bool:
        """Do what a command asks for; returns whether to go on."""
        if word == "/quit":
            return False
        if word == "/help":
            for line in help_lines(COMMANDS):
                say(line)
        elif word == "/save":
            self.save(rest)
        elif word == "/system":
            self.set_system(rest)
        elif word == "/reset":
            self.dialogue.reset()
            say("a new conversation")
        elif word == "/undo":
            turn = self.dialogue.drop()
            said = shortened(visible(turn.said), 60) if turn else ""
            say(f"taken back: {said}" if turn else "there is no turn to take back")
        else:
            self.again(terminal)
        return True

    def again(self, terminal: bool) -> None:
        if not self.dialogue.turns:
            raise UserError("/again: nothing has been said yet", "say something")
        if self.options.temperature == 0:
            raise UserError("/again: --temperature 0 draws the same text each time", "give one above 0")
        self.dialogue.turns[-1].draws += 1
        self.show(self.answer(), terminal)

    def set_system(self, text: str) -> None:
        """Raises UserError where a model cannot read the text."""
        speakers = self.dialogue.speakers if text else []
        without = [speaker.name for speaker in speakers if not has_system_role(speaker, text)]
        self.dialogue.system = text
        if without:
            say(f"no system role in {', '.join(without)}: the text goes in front of what is said first")
        elif not text:
            say("no system text")

    def save(self, name: str) -> None:
        """Write samples, and a manifest beside them. Raises UserError for a name that will not do."""
        out = Path(os.path.expanduser(name))  # noqa: PTH111 - ~nobody is a name as well
        if out.suffix != ".jsonl":
            raise UserError(f"/save {name}".rstrip() + ": samples are written as .jsonl", "/save talk.jsonl")
        rows = list(self.dialogue.rows())
        if not rows:
            raise UserError("/save: there is no reply yet", "say something first")
        try:
            hold(out)
            if out.exists() and out.resolve() not in self.saved:
                raise UserError(f"/save {name}: is there already", "choose another name")
            check_alone(out, out if out.exists() else None, "choose another name")
            manifest = begin_manifest("chat", self.options, out.parent)
            seconds = round(time.monotonic() - self.started, 3)
            manifest["options"]["out"] = str(out)
            manifest |= {"counts": {"in": len(rows), "out": len(rows)}, "seconds": seconds}
            out.parent.mkdir(parents=True, exist_ok=True)
            write_manifest(manifest_path(out), manifest)
            write_rows(out, rows)
        except OSError as error:
            told = storage_error(error, out)
            if told is None:
                raise
            raise told from None
        self.saved.add(out.resolve())
        say(f"{out}: {len(rows)} rows")
