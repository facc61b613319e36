"""An exported PPO -> the scores of its preference model over HTTP, for the engine that runs it.

    cai serve openrlhf/ --port 5000 --device cuda:0 --dtype bfloat16

The preference model reads prompt and reply as `cai score` does, closed by the EOS on which it scores; the reward is
that of `cai ppo`: --normalise-scores, --score-clip and --missing-eos-penalty of the export. Several servers share the
work where REWARD_URL names them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cai_cli.console.messages import say
from cai_cli.console.options import DeviceOptions, flag
from cai_cli.errors import RunError
from cai_cli.models.devices import check_device
from cai_cli.models.paths import check_model


@dataclass(frozen=True, kw_only=True)
class Options:
    hardware: DeviceOptions
    export: Annotated[Path, typer.Argument(help="What `cai export openrlhf` or `cai export verl` wrote.")]
    pm: Annotated[
        str | None,
        flag("Model", "Where the preference model lies here; its content has to be the exported one's."),
    ] = None
    host: Annotated[str, flag("Server", "Address to listen on; 0.0.0.0 for other machines.")] = "127.0.0.1"
    port: Annotated[int, flag("Server", "0 takes a free one.", min=0, max=65535)] = 5000
    batch_size: Annotated[int, flag("Model", "Most replies per forward pass.", min=1)] = 32


def run(options: Options) -> None:
    """Score replies for a PPO that another engine runs.

    Example: cai serve openrlhf/ --host 0.0.0.0 --port 5000 --device cuda:0
    """
    from cai_cli.training.export.exported import read_export

    export = read_export(options.export)
    path = export.preference_model(options.pm)
    check_model(path, "--pm", "preference model")
    check_device(options.hardware.device, dry_run=False)

    from cai_cli.training.export.serving import Reward, open_server
    from cai_cli.training.ppo.rewards import RewardShape
    from cai_cli.training.preference.reading import open_preference_model

    pm = open_preference_model(path, options.hardware.device, options.hardware.dtype)
    shape = dict(export.settings["reward"])
    reward = Reward(pm, path, stops=shape.pop("stops"), shape=RewardShape(**shape), rows=options.batch_size)
    try:
        server = open_server(options.host, options.port, reward)
    except (OSError, OverflowError) as error:
        told = f"--host {options.host} --port {options.port}: cannot listen there: {error}"
        raise RunError(told, "choose another port, or end what listens there") from None
    with server:
        say(f"{path} scores at http://{options.host}:{server.server_address[1]}; Ctrl-C ends it")
        server.serve_forever()
