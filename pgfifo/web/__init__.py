"""The HTTP API and the web page, as an application of its own or inside of somebody's (``pgfifo[web]``).

::

    from pgfifo.web import Settings, create_app

    app = create_app("postgresql://…", settings=Settings(tokens={"ann": "…"}))
"""

try:
    from pgfifo.web.app import create_app
except ImportError as missing:
    needed = ("fastapi", "jinja2", "prometheus_client", "pydantic", "starlette")
    if missing.name is None or missing.name.split(".")[0] not in needed:
        raise
    raise ModuleNotFoundError(
        f"pgfifo.web needs {missing.name}, which is not installed: pip install 'pgfifo[web]'",
        name=missing.name,
    ) from missing
from pgfifo.web.security import User
from pgfifo.web.settings import Settings

__all__ = ["Settings", "User", "create_app"]
