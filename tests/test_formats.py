def test_numbers_agree_with_their_noun():
    """One round, and several."""
    assert [counted(n, "round") for n in (0, 1, 2)] == ["0 rounds", "1 round", "2 rounds"]
