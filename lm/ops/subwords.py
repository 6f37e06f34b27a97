"""The character n-grams of a word and their hashes, as in fastText.

Bojanowski et al. 2017 (arXiv:1607.04606). A word is put between the signs < and >; its
n-grams are counted in characters (code points) and hashed as bytes of UTF-8.
"""

OFFSET, PRIME = 2166136261, 16777619  # of the 32-bit hash FNV-1a


def hash_of(text: str) -> int:
    """Computes the 32-bit FNV-1a hash of a text.

    The reference program extends each byte by its sign before the exclusive or, which
    matters for all characters beyond ASCII.
    """
    value = OFFSET
    for byte in text.encode(errors="surrogatepass"):
        extended = byte | 0xFFFFFF00 if byte > 127 else byte
        value = ((value ^ extended) * PRIME) & 0xFFFFFFFF
    return value


def ngrams(word: str, least: int, most: int) -> list[str]:
    """Lists the n-grams of <word> of `least` to `most` characters.

    They are in the order of their first character, then of their length. Where n-grams
    of one character are asked for, the signs < and > alone are none.
    """
    text = f"<{word}>"
    found = []
    for start in range(len(text)):
        for end in range(start + least, min(start + most, len(text)) + 1):
            at_border = start == 0 or end == len(text)
            if end - start > 1 or not at_border:
                found.append(text[start:end])
    return found


def buckets_of(word: str, least: int, most: int, count: int) -> tuple[int, ...]:
    """Returns the bucket of each n-gram of a word, in 0 .. `count` - 1.

    Args:
      least, most: characters of an n-gram.
      count: the number of buckets; 0 gives none.
    """
    if not count or not most:
        return ()
    return tuple(hash_of(gram) % count for gram in ngrams(word, least, most))
