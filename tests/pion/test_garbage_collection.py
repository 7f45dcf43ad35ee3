import gc

from pion.garbage_collection import importing


def test_what_was_imported_is_never_looked_through_again():
    with importing():
        assert not gc.isenabled()
        imported = [[]]
    assert gc.isenabled()
    assert not any(one is imported for one in gc.get_objects())
