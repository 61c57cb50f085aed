"""`diffclip push`: a model to the Hugging Face hub, with a card made of its recipe and results."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from diffclip.text import say_loading


def push(
    model: Positional[str],
    repository: Positional[str],
    /,
    *,
    license: str,
    data: str = "",
    results: tuple[Path, ...] = (),
    private: bool = False,
    update: bool = False,
    dry_run: bool = False,
) -> None:
    """Put a model on the Hugging Face hub: safetensors, config, model card.

    Args:
        model: What diffclip.load takes, where it is a CLIP or DiffCLIP: a run, a folder, a file, hf:OWNER/NAME.
        repository: OWNER/NAME, made if it is not there. HF_ENDPOINT says on which hub, HF_TOKEN or `hf auth login` who
            you are.
        license: Of the weights, as the hub calls it: mit, apache-2.0, cc-by-4.0, cc-by-nc-4.0, other and so on.
        data: What the model was trained on, in words or Markdown; by default what its recipe says.
        results: Folders or results.jsonl that diffclip eval wrote; by default the run's own.
        private: Make a repository that only you see.
        update: Write over a repository that holds files already; its history keeps them.
        dry_run: Show the card, which keeps the last names of paths, and the files; ask nothing of the hub.
    """
    say_loading()
    import re
    import tempfile

    from diffclip import durable
    from diffclip.data.tokenizer import Tokenizer
    from diffclip.errors import UserError
    from diffclip.models.weights import hub
    from diffclip.models.weights.store import load_clip, save
    from diffclip.reporting.card import card
    from diffclip.terminal import Terminal

    name = hub.repository(repository)
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise UserError(f"--license {license}: give the hub's identifier, such as mit or cc-by-nc-4.0, or other")
    loaded = load_clip(model, what="push")
    if not isinstance(loaded.tokenizer, Tokenizer):
        raise UserError(f"{model} reads texts by a tokenizer of its own, which diffclip's files have no place for")
    text = card(loaded, model, name, license=license, data=data, results=results)
    console = Terminal()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        save(loaded, folder)
        durable.write_text(folder / "README.md", text)
        files = [
            f"{path.name}: {path.stat().st_size:,} bytes, SHA-256 {durable.sha256(path)}"
            for path in sorted(folder.iterdir())
        ]
        if dry_run:
            end = f"{len(files)} files for {name}, {'private' if private else 'public'}. Nothing was sent: a dry run."
            said = [text, *files, end]
        else:
            said = [*files, f"Pushed: {hub.push(folder, name, private=private, update=update)}"]
    for line in "\n".join(said).split("\n"):
        console.print(line, highlight=False, soft_wrap=True)
