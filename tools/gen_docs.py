"""Write every generated page anew: ``make docs``."""

import importlib
import pkgutil
import re

import tools


def main() -> None:
    """Run each generator of pages: the modules gen_…_docs of this folder."""
    for module in pkgutil.iter_modules(tools.__path__):
        if re.fullmatch(r"gen_\w+_docs", module.name):
            importlib.import_module(f"tools.{module.name}").main()


if __name__ == "__main__":
    main()
