"""Write docs/http-api.md from the API's OpenAPI document.

    python -m tools.gen_http_docs          # write it
    python -m tools.gen_http_docs --check  # fail if it is not what it should be

Only names, types and descriptions are taken, so that the next version of FastAPI does not change the page.
"""

import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pgfifo.web import Settings, create_app

PAGE = Path(__file__).parent.parent / "docs" / "http-api.md"

_HEAD = """\
# The HTTP API, route by route

<!-- Made by tools/gen_http_docs.py from the OpenAPI document: change the routes' own texts. -->

What is the same everywhere stands in [http](http.md): who is let in, answers, pages, problems. The same as a
document for programs: `GET /api/openapi.json`.
"""

Schema = dict[str, Any]


def page() -> str:
    """Return the page."""
    document: dict[str, Any] = create_app("", settings=Settings(unauthenticated=True)).openapi()
    schemas: dict[str, Schema] = document["components"]["schemas"]
    parts = [_HEAD]
    for tag in document["tags"]:
        parts.append(f"\n## {tag['name'].capitalize()}\n\n{tag['description']}\n")
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if tag["name"] in operation["tags"]:
                    parts += _operation(f"{method.upper()} {path}", operation, schemas)
    parts.append("\n## What is answered\n")
    for name in sorted(_answered(document)):
        parts.append(f"\n### {name}\n\n{_prose(schemas[name].get('description', ''))}\n\n")
        parts += _members(schemas[name])
    return "".join(parts)


def _operation(title: str, operation: Schema, schemas: dict[str, Schema]) -> Iterator[str]:
    yield f"\n### {title}\n\n{_prose(operation['description'])}\n"
    given = operation.get("parameters", [])
    if given:
        yield "\n| parameter | in | what |\n|---|---|---|\n"
        for each in given:
            what = _cell(each["description"]) + _range(each["schema"])
            yield f"| `{each['name']}` | {each['in']} | {what} |\n"
    body = operation.get("requestBody")
    if body is not None:
        schema = _resolved(_only(body["content"])["schema"], schemas)
        yield "\nBody:"
        if "properties" in schema:
            yield "\n\n"
            yield from _members(schema, schema.get("required", ()))
        else:
            yield f" {_prose(schema.get('description', 'a JSON object.'))}\n"
    answers = []
    for status, told in operation["responses"].items():
        content = told.get("content", {}).get("application/json")
        if status != "default" and int(status) < 400:
            answers.append(f"{status} {_of(content['schema'], schemas) if content else ''}".strip())
    problems = [status for status in operation["responses"] if status != "default" and int(status) >= 400]
    yield f"\nAnswers {', '.join(answers)}" + (
        f"; problems {', '.join(sorted(problems))}.\n" if problems else ".\n"
    )


def _members(schema: Schema, required: Collection[str] = ()) -> Iterator[str]:
    yield "| member | type | what |\n|---|---|---|\n"
    for name, told in schema.get("properties", {}).items():
        needed = " Has to be there." if name in required else ""
        yield f"| `{name}` | {_type(told)} | {_cell(told.get('description', ''))}{needed} |\n"


def _answered(document: Schema) -> set[str]:
    """Return the names of the shapes below ``data``, and of those in them."""
    schemas = document["components"]["schemas"]
    found: set[str] = set()
    wanted = [
        content["schema"]["$ref"].rpartition("/")[2]
        for methods in document["paths"].values()
        for operation in methods.values()
        for status, told in operation["responses"].items()
        if status != "default"
        and int(status) < 400
        and (content := told.get("content", {}).get("application/json"))
        and "$ref" in content["schema"]
    ]
    seen = set(wanted)
    while wanted:
        name = wanted.pop()
        if not name.endswith(("Answer", "List", "Page")) or "data" not in schemas[name].get("properties", {}):
            found.add(name)
        inner = set(re.findall(r"#/components/schemas/(\w+)", str(schemas[name]))) - seen
        seen |= inner
        wanted += inner
    return found


def _of(schema: Schema, schemas: dict[str, Schema]) -> str:
    """Return what is under ``data``."""
    if "$ref" not in schema:
        return ""
    inner = _resolved(schema, schemas)["properties"]
    return f"`data`: {_type(inner['data'])}" + (", `next`" if "next" in inner else "")


def _type(schema: Schema) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if not name.endswith("Body") and name not in _BODIES else "object"
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return ", ".join(
                dict.fromkeys(_type(each) for each in schema[word] if each.get("type") != "null")
            )
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if schema.get("format") == "date-time":
        return "time"
    kind: str = schema.get("type", "any")
    return kind


_BODIES = ("Filter", "Item", "Policy", "SharedLimitValues")


def _range(schema: Schema) -> str:
    """Return what a parameter may be, and what it is by default."""
    said = []
    inner = next((each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"), schema)
    inner = inner.get("items", inner)
    if "enum" in inner:
        said.append(", ".join(f"`{each}`" for each in inner["enum"]))
    if "minimum" in inner and abs(inner.get("maximum", 0)) < 2**62:
        said.append(
            f"{inner['minimum']:,} to {inner['maximum']:,}"
            if "maximum" in inner
            else f"from {inner['minimum']:,}"
        )
    if schema.get("default") is not None:
        said.append(f"by default `{str(schema['default']).lower()}`")
    return f" ({'; '.join(said)})" if said else ""


def _resolved(schema: Schema, schemas: dict[str, Schema]) -> Schema:
    for each in schema.get("anyOf", [schema]):
        if "$ref" in each:
            return schemas[each["$ref"].rpartition("/")[2]]
    return schema


def _only(content: Schema) -> Schema:
    [found] = content.values()
    told: Schema = found
    return told


def _prose(text: str) -> str:
    return text.replace("``", "`").strip()


def _cell(text: str) -> str:
    return _prose(text).replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """Write the page, or compare it."""
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page())
    elif PAGE.read_text() != page():
        sys.exit(f"{PAGE} is stale; write it anew with: python -m tools.gen_http_docs")


if __name__ == "__main__":
    main()
