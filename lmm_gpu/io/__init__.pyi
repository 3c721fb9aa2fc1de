from .archive import read_archive, write_archive
from .files import write_json, write_table
from .source import Source, open_source

__all__ = [
    "Source",
    "open_source",
    "read_archive",
    "write_archive",
    "write_json",
    "write_table",
]
