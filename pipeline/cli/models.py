"""The commands that use models: predictions, embeddings, searches, challenge submissions, models for open_clip and the Hub."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import UserError, WorkError


def predict(
    trial: Annotated[Path, typer.Argument(help="A trained trial's folder; with --group an ensemble's too.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")],
    domain: Annotated[str | None, typer.Option(help="Their domain; default: unknown.")] = None,
    species: Annotated[list[str] | None, typer.Option(help="Their scientific name, or (repeated) that of each.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cuda or cpu; default: the trial's.")] = None,
    group: Annotated[bool, typer.Option("--group", help="They are of one group: print mean ± sigma.")] = False,
    colour_card: Annotated[Path | None, typer.Option(metavar="FILE", help="Image of the colour card beside them.")] = None,
    scale_bar: Annotated[Path | None, typer.Option(metavar="FILE", help="Image of the scale bar beside them.")] = None,
) -> None:
    """Print a trained model's predictions for new images, or its forecast of the group that they are of."""
    from pipeline.stages.predict import Origin, image_files, predict_files, predict_group

    origin = Origin(domain, tuple(species or ()), colour_card, scale_bar)
    files, bad = image_files(images), list[Path]()
    if group:
        found = predict_group(trial, files, origin, device, bad)
        texts = {name: f"{mu:.4f}" + (f" ± {sigma:.4f}" if sigma is not None else "") for name, (mu, sigma) in found.items()}
        print("\t".join(f"{name}={text}" for name, text in texts.items()))
    else:
        for file, values in zip(files, predict_files(trial, files, origin, device, bad), strict=True):
            if values:
                print(f"{file}\t" + "\t".join(f"{name}={value:.4f}" for name, value in values.items()), flush=True)
    if bad:
        raise WorkError(f"{len(bad)} of {len(files)} images cannot be read: they are named above")


def explain(
    trial: Annotated[Path, typer.Argument(help="A trained trial's folder.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="New folder for pictures and numbers; default: explained/ of the trial, for its report."
        ),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="What to explain, or (repeated) several; default: the first, or the likeliest class.")
    ] = None,
    method: Annotated[str, typer.Option(help="occlusion, gradient, or both as far as the model allows.")] = "both",
    patches: Annotated[int, typer.Option(min=2, max=64, help="Cells along the longer side of an image.")] = 14,
    fill: Annotated[str, typer.Option(help="What stands where cells are taken away: mean colour, or blur.")] = "mean",
    domain: Annotated[str | None, typer.Option(help="As for predict; so are the next four.")] = None,
    species: Annotated[list[str] | None, typer.Option(help="Their scientific name, or (repeated) that of each.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cuda or cpu; default: the trial's.")] = None,
    colour_card: Annotated[Path | None, typer.Option(metavar="FILE", help="Image of the colour card beside them.")] = None,
    scale_bar: Annotated[Path | None, typer.Option(metavar="FILE", help="Image of the scale bar beside them.")] = None,
) -> None:
    """Show where in images a trained model's predictions come from, and check that by taking away the cells that matter most."""
    from pipeline.reporting.terminal import print_cells
    from pipeline.stages import explain as stage
    from pipeline.stages.predict import Origin, image_files, trial_at

    origin, out = Origin(domain, tuple(species or ()), colour_card, scale_bar), out or trial_at(trial).explained
    files, bad = image_files(images), list[Path]()
    request = stage.Request(trial, files, out, tuple(target or ()), method, fill, patches, origin, device)
    done = stage.run(request, bad)
    if done:
        print_cells(stage.HEADER, [line for each in done for line in stage.lines(each)])
        print(f"{out}: a picture of each image, explain.csv with these numbers, explain.json with those of all cells too")
    if bad:
        raise WorkError(f"{len(bad)} of {len(files)} images cannot be read: they are named above")


def interpolate(
    trials: Annotated[list[Path], typer.Argument(help="A trained trial of two tuned towers; several: their soup.")],
    alphas: Annotated[str, typer.Option(metavar="A,B,…", help="Shares of the tuned model.")] = "0,.1,.2,.3,.4,.5,.6,.7,.8,.9,1",
    device: Annotated[str | None, typer.Option(help="auto, cuda or cpu; default: auto.")] = None,
) -> None:
    """Evaluate models between the released and the tuned one (WiSE-FT), and draw what is gained on species that were trained on
    against what is lost on others."""
    from pipeline.stages import interpolate as stage

    try:
        shares = [float(text) for text in alphas.split(",")]
    except ValueError:
        raise UserError(f"--alphas {alphas}: write numbers with commas between them, such as 0,.5,1") from None
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise UserError(f"--alphas {alphas}: each is within 0 and 1")
    found = stage.run(trials, shares, device)
    print("\t".join(("alpha", *stage.SHOWN)))
    for row in found.rows:
        print("\t".join("" if row[name] is None else f"{row[name]:.4f}" for name in ("alpha", *stage.SHOWN)))
    print(f"of {found.split}; {found.files[0]} has all figures, {found.files[1].name} beside it a picture")


def embed(
    folder: Annotated[Path, typer.Argument(help="Folder of images; those in its folders too.")],
    backbone: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="hf-hub:owner/name, local-dir:/a/folder or ARCHITECTURE:TAG of open_clip; a DINOv2 (facebook/dinov2-base, "
            "or its folder); timm:NAME; pixels:SIZE.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="The file to write: a row for each image.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 64,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that decode; default: one for each CPU.")] = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file of other images or backbone.")] = False,
    scope: Annotated[
        str, typer.Option("--range", metavar="WHICH", help="Values of 16-bit grey shown: full, image, or LOW,HIGH.")
    ] = "full",
    background: Annotated[str, typer.Option(help="Colour that stands where images are transparent.")] = "white",
    exif: Annotated[str, typer.Option(help="apply or ignore an EXIF orientation.")] = "apply",
    max_pixels: Annotated[int, typer.Option(help="Larger images are refused, JPEGs read smaller.")] = 178_956_970,
) -> None:
    """Write the embeddings of a plain folder of images to a Parquet file. The same command goes on after an interruption."""
    from pipeline.stages import embed as stage

    decoding = stage.parse_decoding(range=scope, background=background, exif=exif, max_pixels=max_pixels)
    try:
        n_bad = stage.run(stage.Request(folder, backbone, out, batch_size, threads, device, overwrite, decoding))
    except KeyboardInterrupt:
        again = shlex.join(["carabid", *sys.argv[1:]])
        print(f"carabid: what is embedded is kept; to go on: {again}", file=sys.stderr)
        raise
    if n_bad:
        raise WorkError(f"{n_bad} images of {folder} cannot be read: the column error of {out} says why")


def index(
    model: Annotated[
        str, typer.Argument(metavar="TRIAL", help="A trained trial of two towers; or a model's name, as embed takes it.")
    ],
    images: Annotated[Path, typer.Argument(help="Folder of images; or a table (CSV, Parquet) that names image files.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
    kind: Annotated[str, typer.Option(help="flat: exact; hnsw: approximate, its recall is measured.")] = "flat",
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 64,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that decode; default: one for each CPU.")] = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index of other images or another model.")] = False,
) -> None:
    """Embed images with a tuned model and write an index for `search`. The same command goes on after an interruption."""
    from pipeline.stages import index as stage

    made = stage.run(stage.Request(model, images, out, kind, batch_size, threads, device, overwrite))
    recall = made.record["recall"]
    said = f", finds {recall['recall']:.2%} of the {recall['k']} nearest" if recall else ""
    print(f"{out}: {made.record['n']} images, {made.record['kind']}{said}{'' if made.is_new else ': it is up to date'}")
    if made.n_bad:
        raise WorkError(f"{made.n_bad} images cannot be read and are left out: the column error of {out}/rows.parquet says why")


def search(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An index, as `carabid index` writes it.")],
    query: Annotated[str, typer.Argument(help="A text; or the path of an image.")],
    top: Annotated[int, typer.Option(min=1, help="How many images to show.")] = 10,
    form: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
    template: Annotated[str | None, typer.Option(help="What a text is put into: 'a photo of $SCI$'; default: as it is.")] = None,
    trial: Annotated[Path | None, typer.Option(help="Where the index's trial is now, if it has moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
) -> None:
    """Show the images of an index that are nearest to a text or an image, the nearest first."""
    from pipeline.reporting import hits as shown

    shown.check(form)
    from pipeline.stages import search as stage

    found = stage.run(stage.Request(folder, query, top, template, trial, device))
    shown.show(form, [(hit.rank, hit.score, hit.species, hit.file) for hit in found])


def export(
    trials: Annotated[list[Path] | None, typer.Argument(help="A trained trial's folder; several: an ensemble.")] = None,
    to: Annotated[str, typer.Option(help="codabench or kaggle, challenges' platforms; open_clip, a tuned model.")] = "codabench",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder to write.")] = None,
    zipped: Annotated[bool, typer.Option("--zip", help="Write DIR.zip too, as it is uploaded.")] = False,
    with_backbone: Annotated[bool, typer.Option("--with-backbone", help="Put its weights in; no internet needed.")] = False,
    check: Annotated[Path | None, typer.Option(metavar="DIR", help="Try a submission (folder, zip); write none.")] = None,
    python: Annotated[
        Path | None, typer.Option(help="With --check: interpreter; default: this, with the whitelist alone.")
    ] = None,
    challenge: Annotated[str | None, typer.Option(help="With --check: beetles or butterflies; default: it tells.")] = None,
    largest: Annotated[int, typer.Option(min=1, help="With --check: images of the largest group of beetles.")] = 500,
    gpu: Annotated[bool, typer.Option("--gpu", help="With --check: let it see the GPUs; default: none.")] = False,
    test: Annotated[Path | None, typer.Option(metavar="FILE", help="With --to kaggle, or a check of it: test.csv.")] = None,
    weights: Annotated[str | None, typer.Option(metavar="W,W,…", help="With --to kaggle: of each trial; default: alike.")] = None,
) -> None:
    """Write trained trials as a challenge submission, or check one as its platform would run it, without this package; or write
    two tuned towers as a model that plain open_clip loads."""
    if check is not None:
        if trials or out:
            raise UserError("--check looks at a submission that is there: name no trials and no --out with it")
        for line in _check(check, test, python, largest, gpu, challenge):
            print(line)
    elif to not in ("codabench", "kaggle", "open_clip"):
        raise UserError(f"--to {to}: choose codabench, kaggle or open_clip")
    elif out is None:
        raise UserError(f"say where to: --to {to} --out DIR; or --check DIR to check a submission that is there")
    elif to == "kaggle":
        print(_to_kaggle(trials or [], out, test, weights))
    elif to == "open_clip":
        print(_to_open_clip(trials or [], out, zipped or with_backbone))
    else:
        from pipeline.export.codabench import export as write

        print(write(trials or [], out, zipped, with_backbone))


def publish(
    trial: Annotated[Path, typer.Argument(help="A trained and evaluated trial's folder.")],
    to: Annotated[str, typer.Option(metavar="hf:OWNER/NAME", help="The model on the Hugging Face Hub; made if it is not there.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the files and the card; ask no network.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Let everybody read it; default: you, or its owner, alone.")] = False,
    license: Annotated[
        str, typer.Option(metavar="ID", help="Licence of the weights, as the Hub writes it: cc-by-4.0.")
    ] = "unknown",
) -> None:
    """Upload a trained trial to the Hugging Face Hub with its card, as one commit. The token is that of `hf auth login`."""
    from pipeline.export.publish import parse_repository, upload
    from pipeline.export.release import prepare

    release = prepare(trial, parse_repository(to), license)
    for note in release.notes:
        print(f"carabid: {note}", file=sys.stderr, flush=True)
    if not dry_run:
        print(upload(release, public))
        return
    for name, size in release.sizes():
        print(f"{size:>13,}  {name}")
    print(f"{sum(size for _, size in release.sizes()):>13,}  bytes, to {release.repository}; nothing was uploaded\n")
    print(release.card)


def _check(folder: Path, test: Path | None, python: Path | None, largest: int, gpu: bool, challenge: str | None) -> list[str]:
    """What is found of a submission that is there."""
    from pipeline.export import check, kaggle

    if (folder / kaggle.TABLE).is_file():
        return kaggle.check(folder, test)
    return check.check(folder, python, largest, gpu, challenge)


def _to_kaggle(trials: list[Path], out: Path, test: Path | None, weights: str | None) -> Path:
    """The table that is uploaded."""
    from pipeline.export import kaggle

    if test is None:
        raise UserError("--to kaggle answers the rows of a table: --test test.csv")
    try:
        shares = [float(share) for share in weights.split(",")] if weights else []
    except ValueError as error:
        raise UserError(f"--weights {weights}: numbers with commas between them") from error
    return kaggle.export(trials, test, out, shares)


def _to_open_clip(trials: list[Path], out: Path, as_submission: bool) -> Path:
    """The folder of a tuned model."""
    from pipeline.export.open_clip import export as write

    if len(trials) != 1 or as_submission:
        raise UserError("--to open_clip writes one trial as a folder: name one, without --zip and --with-backbone")
    return write(trials[0], out)
