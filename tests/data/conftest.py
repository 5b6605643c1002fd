from pathlib import Path

import pytest

from tests.support.photos import write_imagenet


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    return write_imagenet(tmp_path)
