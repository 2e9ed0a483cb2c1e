"""What the host adds to a rollout: keys for repeated rows, where thinking ends."""

import jax
import numpy as np

from iapo_jax.data.problems import Problems
from iapo_jax.model.sampling import prompt_keys
from iapo_jax.pretrained.tokenization import thinking_lengths
from iapo_jax.rollout.sampler import Sampler, distinct_rows, draw_rollout
from iapo_jax.sharding import by_prompt, make_mesh


class OneLetterTokenizer:
    """Ids are positions in its alphabet; decoding joins them."""

    alphabet = "0123456789=.</>thinkasw"

    def encode(self, text, add_special_tokens=False, verbose=True):
        return [self.alphabet.index(letter) for letter in text]

    def decode(self, ids, clean_up_tokenization_spaces):
        return "".join(self.alphabet[i] for i in ids)


def test_a_row_that_comes_twice_draws_twice():
    numbers = distinct_rows([3, 1, 3, 3, 0], rows=5)
    # The first time a row keeps its own number; the others are 3 + 5 and 3 + 2 * 5.
    assert numbers.tolist() == [3, 1, 8, 13, 0]
    keys = jax.random.key_data(prompt_keys(0, 7, numbers))
    assert len({tuple(row) for row in np.asarray(keys).tolist()}) == 5
    alone = jax.random.key_data(prompt_keys(0, 7, np.asarray([3])))
    np.testing.assert_array_equal(keys[0], alone[0])


def test_no_round_of_a_step_draws_what_another_drew():
    """Their keys come from numbers that are all different, whatever rows the rounds hold."""
    numbers = []

    def keys(seed, step, rows):
        numbers.extend(rows.tolist())
        return rows

    problems = Problems([], [[1]] * 5, [], [], 0)
    sampler = Sampler(
        draw=lambda params, prompts, keys: keys,
        prepare=lambda params: params,
        keys=keys,
        prompt_width=16,
        placement=by_prompt(make_mesh(1, 1, 1)),
    )
    for number in range(3):
        draw_rollout(sampler, None, problems, [3, 1, 3], seed=0, step=7, round=number)
    assert len(set(numbers)) == len(numbers) == 9
    assert numbers[:3] == [3, 1, 8]


def test_thinking_ends_at_the_first_sign_of_an_end():
    tokenizer = OneLetterTokenizer()
    stop, ends = 99, ["</think>", "<answer>"]
    cases = {
        "12</think><answer>3": 2,  # the tag
        "12<answer>3</think>": 2,  # an answer without the tag
        "1234": 4,  # cut at the limit: all of it
    }
    tokenizer.alphabet += "er"
    rows = [np.asarray(tokenizer.encode(text)) for text in cases]
    found = thinking_lengths(tokenizer, rows, [stop], ends)
    assert found.tolist() == list(cases.values())
    # Stopped without a tag: the stop token is no thought, and competes with going on.
    stopped = [np.append(tokenizer.encode("1234"), stop), np.asarray([stop])]
    assert thinking_lengths(tokenizer, stopped, [stop], ends).tolist() == [4, 0]
