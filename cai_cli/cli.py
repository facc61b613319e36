"""The `cai` command: declares the subcommands and turns errors into exit codes. No logic, no torch.

Each stage module has a frozen dataclass `Options` (the flags, in groups) and `run(options)` (the work; its
docstring is the help).
"""

from __future__ import annotations

import inspect
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cai_cli import __version__
from cai_cli.artifacts.inputs import check_inputs
from cai_cli.artifacts.locks import give_all_back
from cai_cli.artifacts.rejects import with_restart
from cai_cli.console.ending import one_line
from cai_cli.console.groups import build, check_needs, flags_of
from cai_cli.console.help import Command, Group
from cai_cli.console.memory_hints import memory_error
from cai_cli.console.messages import (
    discard_unwritten,
    fail,
    nobody_reads,
    open_closed_streams,
    say,
    speak_for_the_rooms_below,
)
from cai_cli.console.options import FLAG
from cai_cli.console.usage_hints import line_for, meant_flag
from cai_cli.errors import CaiError, UserError
from cai_cli.processes.interruption import Terminated, asked_to_stop
from cai_cli.rows.storage import read_input, storage_error
from cai_cli.rows.yaml_text import load_yaml
from cai_cli.stages import (
    chat,
    configs,
    constitution,
    constitution_test,
    demo,
    env,
    evaluate_elo,
    evaluate_hhh,
    evaluate_labels,
    evaluate_pm,
    evaluate_responses,
    export,
    export_ppo,
    imports,
    inspect_file,
    label,
    lineage,
    merge,
    pmp,
    ppo,
    push,
    report,
    revise,
    sample,
    score,
    serve,
    sft,
    split,
    train_pm,
)

app = typer.Typer(
    name="cai",
    help="Constitutional AI (RLAIF) from the command line. Every stage reads and writes files, so each eats the last one's.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
constitution_app = typer.Typer(
    no_args_is_help=True, cls=Group, rich_markup_mode=None, help="Check, show and test constitutions."
)
configs_app = typer.Typer(cls=Group, rich_markup_mode=None)
evaluate_app = typer.Typer(
    no_args_is_help=True, cls=Group, rich_markup_mode=None, help="Measure models and labels."
)
export_app = typer.Typer(
    no_args_is_help=True,
    cls=Group,
    rich_markup_mode=None,
    help="Our records in a public format; PPO for engines that run it on many machines.",
)


LARGEST = 3.4e38  # that float32 holds


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take defaults for this command's flags from a YAML file; the command line wins."""
    if path is None:
        return None
    settings = load_yaml(read_input(path, "--config takes a YAML file"), path) or {}
    if not isinstance(settings, dict):
        raise UserError(f"{path}: expected a mapping of flags to values", "for example `seed: 3`")
    from difflib import get_close_matches

    known = {
        name.lstrip("-").replace("-", "_"): parameter
        for parameter in context.command.params
        if parameter.name != "config"
        for name in (*parameter.opts, str(parameter.name))
    }
    for key in settings:
        name = str(key).replace("-", "_")
        if name not in known:
            near = get_close_matches(name, list(known), n=1)
            hint = (
                f"did you mean `{near[0].replace('_', '-')}`?"
                if near
                else f"see `{context.command_path} --help`"
            )
            raise UserError(f"{path}: unknown key `{key}`", meant_flag(context, f"--{key}") or hint)
    defaults: dict[str, Any] = {}
    for key, value in settings.items():
        parameter = known[str(key).replace("-", "_")]
        several = getattr(parameter, "multiple", False) or parameter.nargs == -1
        if several and not isinstance(value, list):
            value = [value]
        elif isinstance(value, dict):  # a flag that takes a JSON object
            value = json.dumps(value)
        defaults[str(parameter.name)] = value
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


Config = Annotated[
    Path | None,
    typer.Option(help="YAML file with any of these flags as keys.", is_eager=True, callback=read_config),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def add_command(
    where: typer.Typer, name: str, options_type: type, run: Callable[[Any], None], panel: str = ""
) -> None:
    """Add `run` as a subcommand whose flags are those of `options_type`."""
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(name, kind, default=flag.default, annotation=flag.annotation)
        for name, flag in flags_of(options_type).items()
    ]
    parameters.append(inspect.Parameter("config", kind, default=None, annotation=Config))
    parameters.append(inspect.Parameter("debug", kind, default=False, annotation=Debug))
    parameters.append(inspect.Parameter("context", kind, annotation=typer.Context))

    def command(context: typer.Context, **values: Any) -> None:
        del values["config"], values["debug"]
        options: Any = None
        try:
            check_numbers(values)
            options = build(options_type, **values)
            check_needs(options, given(context))
            check_inputs(options)
            run(options)
            sys.stdout.flush()
        except CaiError as error:
            if isinstance(error, UserError):
                error.message = place_of(context, FLAG.findall(error.message)) + error.message
            elif options is not None:
                error.hint = with_restart(error.hint, options)
            raise
        except Terminated as stopped:
            out = values.get("out")
            stopped.continues = out is not None and str(out) != "-" and not values.get("dry_run")
            raise
        except Exception as error:
            if isinstance(error, CaiError) or has_seen_enough(error):
                raise
            short = memory_error(error, options) if options is not None else None
            if short is not None:
                short.hint = with_restart(short.hint, options)
            told = short or storage_error(error, values.get("out"))
            if told is None:
                raise
            raise told from error

    command.__doc__ = run.__doc__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    where.command(name, cls=Command, rich_help_panel=panel or None)(command)


def check_numbers(values: dict[str, Any]) -> None:
    """Raise UserError where a number is none that float32 holds, in which models compute and optimisers
    count.
    """
    for name, value in values.items():
        if isinstance(value, float) and not abs(value) <= LARGEST:
            raise UserError(f"--{name.replace('_', '-')} {value:g}: is out of range", "give a smaller number")


def has_seen_enough(error: BaseException) -> bool:
    """Whether an error is no more than that the reader of stdout has gone. Typer makes a silent exit of it."""
    return isinstance(error, BrokenPipeError | SystemExit) and nobody_reads()


def given(context: typer.Context) -> set[str]:
    """The options that were written, on the command line or in the --config file; the others have their
    defaults.
    """
    sources = {
        str(parameter.name): context.get_parameter_source(str(parameter.name))
        for parameter in context.command.params
    }
    return {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}


def place_of(context: typer.Context, flags: list[str]) -> str:
    """The --config file with a colon where one of the flags has its value from there, else nothing."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if source is not None and source.name == "DEFAULT_MAP" and set(flags) & set(parameter.opts):
            return f"{context.params['config']}: "
    return ""


def show_version(value: bool) -> None:
    if value:
        typer.echo(f"cai {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=show_version, is_eager=True, help="Show the version and stop."
        ),
    ] = False,
) -> None:
    pass


@configs_app.callback(invoke_without_command=True)
def list_configs(context: typer.Context) -> None:
    """List the example configurations, or copy some.

    Example: cai configs copy one-gpu
    """
    if context.invoked_subcommand is None:
        configs.show()


# Typer may carry its own copy of click, so its base exception is found through a name that Typer exports.
UsageMistake: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)

STAGES = "Stages"
FILES = "Files"
EVALUATION = "Evaluation"

add_command(app, "demo", demo.Options, demo.run, "Start here")
add_command(app, "env", env.Options, env.run, "Start here")
add_command(app, "revise", revise.Options, revise.run, STAGES)
add_command(app, "sample", sample.Options, sample.run, STAGES)
add_command(app, "sft", sft.Options, sft.run, STAGES)
add_command(app, "label", label.Options, label.run, STAGES)
add_command(app, "pmp", pmp.Options, pmp.run, STAGES)
add_command(app, "train-pm", train_pm.Options, train_pm.run, STAGES)
add_command(app, "ppo", ppo.Options, ppo.run, STAGES)
add_command(app, "import", imports.Options, imports.run, FILES)
add_command(app, "split", split.Options, split.run, FILES)
add_command(app, "inspect", inspect_file.Options, inspect_file.run, FILES)
add_command(app, "merge", merge.Options, merge.run, FILES)
add_command(app, "score", score.Options, score.run, FILES)
add_command(app, "serve", serve.Options, serve.run, FILES)
add_command(app, "lineage", lineage.Options, lineage.run, FILES)
add_command(app, "push", push.Options, push.run, FILES)
add_command(app, "chat", chat.Options, chat.run, EVALUATION)
add_command(app, "report", report.Options, report.run, EVALUATION)
add_command(export_app, "paper-chains", export.Options, export.run)
add_command(export_app, "openrlhf", export_ppo.Options, export_ppo.openrlhf)
add_command(export_app, "verl", export_ppo.Options, export_ppo.verl)
add_command(evaluate_app, "pm", evaluate_pm.Options, evaluate_pm.run)
add_command(constitution_app, "show", constitution.Options, constitution.show)
add_command(constitution_app, "check", constitution.Options, constitution.check)
add_command(constitution_app, "test", constitution_test.Options, constitution_test.run)
add_command(evaluate_app, "elo", evaluate_elo.Options, evaluate_elo.run)
add_command(evaluate_app, "hhh", evaluate_hhh.Options, evaluate_hhh.run)
add_command(evaluate_app, "labels", evaluate_labels.Options, evaluate_labels.run)
add_command(evaluate_app, "responses", evaluate_responses.Options, evaluate_responses.run)
add_command(configs_app, "copy", configs.Options, configs.copy)
app.add_typer(evaluate_app, name="evaluate", rich_help_panel=EVALUATION)
app.add_typer(export_app, name="export", rich_help_panel=FILES)
app.add_typer(constitution_app, name="constitution", rich_help_panel=FILES)
app.add_typer(configs_app, name="configs", rich_help_panel=FILES)


@one_line()
def main() -> None:
    """The command line: a user's mistake is one line and exit 2, a run that fails is one line and exit 1.

    `__main__` listens to signals before this module is imported.
    """
    debug = "--debug" in sys.argv
    open_closed_streams()
    speak_for_the_rooms_below()
    try:
        # Typer returns the code of what it ended itself, such as `--version`, instead of raising it.
        code = app(prog_name="cai", standalone_mode=False)
        if code == 128 + signal.SIGINT:  # a KeyboardInterrupt, where a library has its own idea of Ctrl-C
            raise Terminated(signal.SIGINT)
        if code:
            sys.exit(code)
        sys.stdout.flush()
    except CaiError as error:
        if debug or asked_to_stop():  # what a signal cut off may look like a mistake
            raise
        fail(error.message, error.hint)
        sys.exit(error.exit_code)
    except typer.Abort as error:  # Typer makes it of an EOFError
        raise error.__cause__ or error from None
    except UsageMistake as error:
        context = getattr(error, "ctx", None)
        message = error.format_message()  # type: ignore[attr-defined]
        if message.startswith("Usage:"):  # a group alone: its help
            for line in message.splitlines():
                say(line)
        else:
            parameter = getattr(error, "param", None)
            place = place_of(context, parameter.opts) if context and parameter else ""
            problem, hint = line_for(error, sys.argv[1:])
            fail(place + problem, hint)
        sys.exit(2)
    except (Exception, SystemExit) as error:
        if has_seen_enough(error):
            sys.exit(128 + signal.SIGPIPE)  # as other tools do
        told = None if debug else storage_error(error)
        if told is None:
            raise
        fail(told.message, told.hint)
        sys.exit(told.exit_code)
    finally:
        give_all_back()
        discard_unwritten()
