"""``archbench export``: a run in the formats that others read."""

from __future__ import annotations

from typing import Annotated

import typer

from archbench.cli.options import Trust, trust_run
from archbench.errors import UnknownNameError, UsageError, did_you_mean
from archbench.presentation.terminal import echo

FORMATS = ("transformers", "gguf")
DTYPES = ("float32", "float16", "bfloat16")


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id or folder of a finished run, or last")],
    place: Annotated[
        str | None,
        typer.Argument(metavar="PLACE", help="The new folder or GGUF file; not needed with --push", show_default=False),
    ] = None,
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help="transformers, or gguf for llama.cpp")
    ] = "transformers",
    dtype: Annotated[
        str, typer.Option("--dtype", help="With --to gguf: type of matrices, float32, float16 or bfloat16")
    ] = "float32",
    push: Annotated[
        str | None, typer.Option("--push", metavar="USER/NAME", help="Also make this private model on the hub")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: everybody may read it")] = False,
    out: Annotated[str, typer.Option("--in", metavar="DIR", help="Folder of the results")] = "results",
    trust: Trust = False,
) -> None:
    """Write a trained model as others read it: a folder for transformers, with weights, configuration, the tokenizer's
    files and a model card with the run's measurements, or a GGUF file. --push brings the folder to the Hugging Face
    hub.
    """
    if to not in FORMATS:
        raise UnknownNameError(f"--to {to}", "there is no such format", did_you_mean(to, FORMATS))
    if place is None and push is None:
        raise UsageError("archbench export", "no folder is named", f"Name one: archbench export {run} DIR")
    if to == "gguf" and push is not None:
        raise UsageError("--push", "a GGUF file is not brought to the hub", "Leave out --to gguf, or --push")
    if dtype not in DTYPES:
        raise UnknownNameError(f"--dtype {dtype}", "there is no such type", did_you_mean(dtype, DTYPES))
    if dtype != "float32" and to != "gguf":
        raise UsageError(f"--dtype {dtype}", "a folder for transformers is not rounded", "Add --to gguf")
    if public and push is None:
        raise UsageError("--public", "nothing is brought to the hub", "Add --push USER/NAME")

    import tempfile
    from pathlib import Path

    from archbench.export.exported_run import exported
    from archbench.export.hub_upload import HubUpload
    from archbench.export.readers import reader_of
    from archbench.export.transformers_folder import require_new_folder, write_transformers_folder

    if trust:
        trust_run(out, run)
    if to == "gguf":
        from archbench.export.gguf_file import require_new_file, write_gguf

        require_new_file(Path(str(place)))
        one = exported(run, out=out)
        name = f"{one.run.architecture.name} {one.run.folder.run_id}"
        notes = write_gguf(Path(str(place)), one.weights, one.config, one.run.tokenizer, name=name, dtype=dtype)
        echo(f"{one.run.folder.run_id} is in {place}")
        for note in notes:
            echo(note)
        return
    if place is not None:
        require_new_folder(Path(place))
    upload = None if push is None else HubUpload(push, public=public)
    one = exported(run, out=out)
    with tempfile.TemporaryDirectory(prefix="archbench-export-") as temporary:
        folder = Path(temporary) / "model" if place is None else Path(place)
        write_transformers_folder(one, folder)
        if place is not None:
            echo(f"{one.run.folder.run_id} is in {place}: {', '.join(sorted(file.name for file in folder.iterdir()))}")
        if upload is not None:
            echo(f"{one.run.folder.run_id} is at {upload.upload(folder)}, {'public' if public else 'private'}")
    echo()
    echo(reader_of(one.config).code.replace("DIR", place or str(push)))
