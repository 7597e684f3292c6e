"""Prose of documentation: reStructuredText and the schemas of web services."""

import gzip
import json
import zipfile
from pathlib import Path

from upcycle.data.documentation import aws_descriptions, google_descriptions, rst_prose

PAGE = """\
.. _target:

======
Cooking
======

.. currentmodule:: kitchen

To *boil* an :class:`~kitchen.Egg`, see :doc:`the guide </guide>` and
`the site <there>`_, then call ``boil()``::

    egg.boil()

    egg.eat()

It takes **three** minutes:

* one for
  the pan
* two for the `egg`

.. code-block:: python

    never = "shown"

.. note:: Hot
    :tags: heat

    Water burns.

.. A comment
   of two lines.

====  ====
a     b
====  ====
.. method:: Egg.eat(salt)

    Eats the egg.
"""


def test_the_prose_of_a_page_is_kept_without_markup_and_code() -> None:
    assert rst_prose(PAGE) == "\n".join(
        [
            "Cooking",
            "To *boil* an Egg, see the guide and the site, then call boil():",
            "It takes three minutes:",
            "* one for the pan",
            "* two for the egg",
            "Water burns.",
            "a     b",
            "Eats the egg.",
        ]
    )


def archive(folder: Path, name: str, content: bytes) -> Path:
    path = folder / "made.whl"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr(name, content)
    return path


LONG = "long enough " + "word " * 14


def test_descriptions_of_operations_and_shapes_are_documents(tmp_path: Path) -> None:
    service = {
        "metadata": {"serviceFullName": "Kitchen"},
        "documentation": f"<p>{LONG}</p>",
        "operations": {"Boil": {"documentation": f"<p>A <b>{LONG}</b></p>"}},
        "shapes": {"Egg": {"documentation": "Short.", "members": {"size": {"documentation": LONG}, "raw": {}}}},
    }
    path = archive(tmp_path, "botocore/data/kitchen/1/service-2.json.gz", gzip.compress(json.dumps(service).encode()))
    text = LONG.strip()
    assert list(aws_descriptions(path)) == [f"Kitchen: {text}", f"Boil: A {text}", f"size: {text}"]


def test_descriptions_of_methods_and_schemas_are_documents(tmp_path: Path) -> None:
    boil = {"description": LONG, "parameters": {"egg": {"description": "The egg."}, "pan": {"description": LONG}}}
    api = {
        "resources": {"eggs": {"methods": {"boil": boil}, "resources": {"shells": {"methods": {"peel": boil}}}}},
        "schemas": {"Egg": {"description": LONG, "properties": {"size": {"type": "integer"}}}},
    }
    path = archive(tmp_path, "googleapiclient/discovery_cache/documents/kitchen.v1.json", json.dumps(api).encode())
    text = LONG.strip()
    boiled = f": {text}\npan: {text}"
    assert list(google_descriptions(path)) == [f"boil{boiled}", f"peel{boiled}", f"Egg: {text}"]
