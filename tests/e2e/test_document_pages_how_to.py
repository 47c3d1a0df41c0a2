"""Every command and snippet of docs/how-to is executed, as in ``test_document_pages.py``."""

import pytest

from documents import ROOT, executable

pytest_plugins = ["document_fixtures"]
pytestmark = pytest.mark.long


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", executable(how_to=True), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_the_page_works(page, run_page):
    run_page(page)
