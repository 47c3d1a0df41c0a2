"""The commonly copied recipe on its card beside our plan, predicted: needs no card, weights or network."""

from __future__ import annotations

from lib import common, page

from snugtune.train.recipes import compare_with_blog


def main() -> None:
    """Predict both and write the result."""
    common.quiet_libraries()
    options = common.parser("The commonly copied recipe beside our plan, predicted.").parse_args()
    found = compare_with_blog()
    common.save_result("recipe", found, options.out, machine=common.hardware())
    page.refresh(options.out)


if __name__ == "__main__":
    main()
