"""The rule of the search, on tries that are only written down."""

from wagle_trainer.forgetting.search import Try, best_try, next_try

DENSITIES, RATES = (0.001, 0.01), (1e-3, 3e-3, 1e-2, 2e-2, 4e-2)


def tried(density, rate, forget=0.5, met=False, within=True, retain=0.9, unseen=0.9):
    return Try(density, rate, 80, forget, retain, unseen, met, within)


def following(*tries, max_tries=8):
    return next_try(tries, DENSITIES, RATES, max_tries)


def test_it_starts_small():
    assert following() == (0.001, 1e-3, False)


def test_a_larger_patch_begins_two_rates_lower():
    assert following(tried(0.001, 4e-2)) == (0.01, 1e-2, False)
    assert following(tried(0.001, 3e-3)) == (0.01, 1e-3, False)


def test_it_ends_with_the_first_try_that_does():
    assert following(tried(0.001, 1e-3, 0.01, met=True)) is None


def test_after_a_broken_floor_it_begins_three_rates_lower():
    assert following(tried(0.001, 4e-2, 0.01, met=True, within=False)) == (0.01, 3e-3, False)


def test_it_ends_at_the_largest_patch_and_at_the_most_tries():
    assert following(Try(0.01, 1e-2, 80, 0.5, 0.9, 0.9, False, True, telling=True)) is None
    assert following(tried(0.001, 1e-3), max_tries=1) is None


def test_after_the_largest_patch_it_begins_again_with_the_words_that_count():
    assert following(tried(0.01, 1e-2)) == (0.001, 1e-3, True)
    assert following(Try(0.001, 4e-2, 80, 0.5, 0.9, 0.9, False, True, telling=True)) == (0.01, 1e-2, True)


def test_a_loss_that_is_not_finite_counts_as_a_broken_floor():
    failed = Try(0.001, 4e-2, 2, None, None, None, False, False)
    assert following(failed) == (0.01, 3e-3, False)
    assert best_try([failed]) is None


def test_the_best_try():
    short, wide = tried(0.001, 1e-3, 0.4), tried(0.001, 3e-3, 0.2)
    broken, done = tried(0.001, 1e-2, 0.0, True, False, retain=0.2), tried(0.01, 1e-3, 0.05, True)
    assert best_try([short, wide, broken]) == 1
    assert best_try([short, wide, broken, done]) == 3
    assert best_try([broken, tried(0.01, 1e-2, 0.0, True, False, retain=0.1)]) == 0
    assert best_try([]) is None
