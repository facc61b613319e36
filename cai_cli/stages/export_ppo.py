"""SL-CAI + preference model + prompts -> all that another engine needs for the same PPO on many machines.

    cai export openrlhf --model sl-cai/ --pm pm/ --prompts rl.jsonl --num-nodes 4 --out openrlhf/
    cai export verl --config configs/eight-gpus/ppo.yaml --num-nodes 4 --out verl/

The flags are those of `cai ppo`, and one --config file serves both. What has no equal in the engine is named here and
in README.md of what is written. `cai serve` gives the engine the preference model's scores, `cai import policy` takes
its result back.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from cai_cli.artifacts.models import ModelArtifact
from cai_cli.artifacts.rejects import counted, put_aside
from cai_cli.console.messages import say, show_text, tell_next, warn
from cai_cli.errors import UserError
from cai_cli.models.templates import template_kwargs
from cai_cli.processes.ranks import check_one_process
from cai_cli.training.export.settings import Options as Options
from cai_cli.training.ppo.checks import check_agreement, check_options
from cai_cli.training.ppo.prompts import RunPrompts, read_sources, room, run_prompts

if TYPE_CHECKING:
    from cai_cli.models.chat import Renderer
    from cai_cli.training.export.folder import Export


def openrlhf(options: Options) -> None:
    """Prompts, settings and reward for PPO by OpenRLHF on many machines.

    Example: cai export openrlhf --config ppo.yaml --num-nodes 4 --reward-url http://10.0.0.1:5000 --out openrlhf
    """
    run("openrlhf", options)


def verl(options: Options) -> None:
    """Prompts, settings and reward for PPO by verl on many machines.

    Example: cai export verl --config ppo.yaml --num-nodes 4 --reward-url http://10.0.0.1:5000 --out verl
    """
    run("verl", options)


def run(engine: str, options: Options) -> None:
    check_one_process("an export is written")
    check_options(options)
    artifact = ModelArtifact(f"export {engine}", options)
    if artifact.done:
        return
    sources, held_out = read_sources(options)

    from cai_cli.models.chat import Renderer
    from cai_cli.models.tokenizers import load_tokenizer
    from cai_cli.training.export.models import check_whole

    check_whole(options.model, "--model")
    check_whole(options.pm, "--pm")
    words = template_kwargs(options.chat_template_kwargs)
    renderer = Renderer(load_tokenizer(options.model), f"--model {options.model}", words)
    check_agreement(options, renderer.tokenizer, load_tokenizer(options.pm, "--pm"))
    prompts = run_prompts(options, sources, held_out, renderer, room(options))
    export = prepared(engine, options, renderer, prompts)

    from cai_cli.training.export.carried import not_carried

    if missing := not_carried(options, export.carried):
        warn(f"no equal in {engine}, and so without effect there: {'; '.join(missing)}")
    if options.output.dry_run:
        show_text(renderer.show(prompts.schedule[0].prompt))
        show_text(export.script(), end="")
        say(f"{len(prompts.schedule)} prompts, {len(prompts.rejected)} would be rejected")
        return
    artifact.start()
    put_aside(prompts.rejected, "prompts", artifact.folder / "rejects.jsonl")
    parts = {"prompts": prompts.schedule} | ({"eval": prompts.held_out} if prompts.held_out else {})
    counts = {
        "in": prompts.kept + len(prompts.rejected),
        "out": len(prompts.schedule),
        "rejected": counted(prompts.rejected),
    }
    artifact.finish(
        lambda folder: export.save(renderer, parts, folder), counts=counts, warnings=prompts.cautions
    )
    say(f"{artifact.folder}/README.md: how to start it, and what became of each setting")
    tell_next("cai serve", artifact.folder, "--port", "5000")


def prepared(engine: str, options: Options, renderer: Renderer, prompts: RunPrompts) -> Export:
    """All that is to be written but the prompts."""
    from cai_cli.training.export import models, openrlhf, verl
    from cai_cli.training.export.carried import plan, theirs
    from cai_cli.training.export.folder import Export
    from cai_cli.training.ppo.rewards import reward_shape

    everything = {prompt.id: prompt.prompt for prompt in [*prompts.schedule, *prompts.held_out]}
    head, stops = (
        models.check_critic(options.pm, engine),
        models.check_stops(options.model, renderer.tokenizer),
    )
    sizes = plan(options, max(len(renderer.encode(turns)) for turns in everything.values()))
    if engine == "openrlhf":
        if renderer.template_kwargs:
            told = "--chat-template-kwargs: OpenRLHF has no such setting, and would write other prompts"
            raise UserError(told, "export for verl, or save a template that needs none with the model")
        models.check_no_images(everything)
        carried = openrlhf.carried(options, sizes)
        settings = theirs(carried) | openrlhf.fixed(options, sizes, head)
    else:
        carried = verl.carried(options, sizes)
        settings = theirs(carried) | verl.fixed(options, sizes)
    reward = asdict(reward_shape(options.reward, options.pm)) | {"stops": stops}
    facts = models.facts(options.model, renderer.tokenizer)
    return Export(engine, options, settings, carried, reward, facts)
