"""Call the HTTP API with requests that Schemathesis makes up from its OpenAPI document: ``make fuzz-http``.

    python -m tests.fuzz_http path/to/schemathesis [its options]

It is no part of the suite, and not installed with the rest: it brings many packages, and takes its time. The
database is one of a server that is made for it and thrown away.
"""

import re
import subprocess
import sys

from tests.support import server as servers

servers.clean_environment()

from tests.support.database import Databases  # noqa: E402

PGFIFO = (sys.executable, "-m", "pgfifo")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "unsupported_method",
)


def main(program: str, options: list[str]) -> int:
    """Start a server, let it be called, and return the caller's exit status."""
    with servers.make_server() as database:
        dsn = Databases(database).shared()
        for action in ("deploy", "mail"):
            subprocess.run([*PGFIFO, "enqueue", action, "--dsn", dsn], check=True)
        serve = [*PGFIFO, "serve", "--dsn", dsn, "--port", "0", "--allow-changes", "--log-level", "error"]
        with subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                found = re.search(r"http://\S+:\d+", process.stderr.readline())
                assert found, "the server did not start"
                call = [program, "run", f"{found[0]}/api/openapi.json", "--checks", ",".join(CHECKS)]
                return subprocess.run([*call, "--continue-on-failure", *options], check=False).returncode
            finally:
                process.terminate()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
