"""Commands about datasets."""

from pathlib import Path
from typing import Annotated

import typer

from powermean.calls import ApiError
from powermean.cli.choosing import newest
from powermean.cli.progress import local_time
from powermean.cli.style import PLAIN
from powermean.cli.terminal import AsJson, connected, counted, note, say, say_json, say_table
from powermean.contracts.api import DatasetList, FieldError

datasets = typer.Typer(help="JSONL datasets for jobs with `data.kind: jsonl`.", no_args_is_help=True, **PLAIN)


@datasets.command("upload")
def upload(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON objects, one per line.", exists=True, dir_okay=False)
    ],
    name: Annotated[str | None, typer.Option(help="What people call it; default: the file's name.")] = None,
    project: Annotated[
        str | None, typer.Option(help="The project whose jobs can use it; default: yours.")
    ] = None,
    json_: AsJson = False,
) -> None:
    """Upload a dataset; prints the id for `data.dataset`.

    Example: powermean datasets upload questions.jsonl --name questions
    """
    with connected() as client:
        try:
            dataset = client.upload_dataset(file, name, project)
        except ApiError as error:
            raise _of_file(error, file) from error
    if json_:
        say_json(dataset)
    else:
        say(f"{dataset.id}  {counted(dataset.rows, 'row')}, fields: {', '.join(dataset.fields)}")


def _of_file(error: ApiError, file: Path) -> ApiError:
    """The error with the file's name where the server has the form's field or a line."""

    def named(one: FieldError) -> FieldError:
        if one.path != "file" and not one.path.startswith("line "):
            return one
        return one.model_copy(update={"path": str(file) if one.path == "file" else f"{file}, {one.path}"})

    fields = tuple(map(named, error.body.fields))
    if fields == error.body.fields:
        return error
    message = f"{fields[0].path}: {fields[0].message}"
    return ApiError(error.status, error.body.model_copy(update={"message": message, "fields": fields}))


@datasets.command("list")
def list_datasets(
    project: Annotated[str | None, typer.Option(help="Only datasets of this project.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most datasets to show; default: all.")] = None,
    json_: AsJson = False,
) -> None:
    """List datasets, newest first.

    Example: powermean datasets list
    """
    with connected() as client:
        found, rest = newest(lambda cursor, most: client.datasets(cursor, most, project), limit)
    if json_:
        say_json(DatasetList(items=found, next=rest))
        return
    say_table(
        ("id", "name", "project", "rows", "fields", "created"),
        (
            (one.id, one.name, one.project, str(one.rows), ", ".join(one.fields), local_time(one.created_at))
            for one in found
        ),
        wrap=("name", "fields"),
        spare=("project", "created"),
        right=("rows",),
    )
    if rest:
        note("There are more datasets: raise --limit, or leave it out.")


@datasets.command("remove")
def remove_dataset(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Its id in the list of datasets.")],
) -> None:
    """Remove a dataset that no unfinished job trains on; for its uploader and maintainers.

    Example: powermean datasets remove ds-f4a578290476d3d899e6ea19
    """
    with connected() as client:
        client.delete_dataset(dataset)
    say(f"{dataset} is removed")
