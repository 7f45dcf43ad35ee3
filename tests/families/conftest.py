from tests.pion.train.conftest import _one_thread, compilations

__all__ = ["_one_thread", "compilations"]
