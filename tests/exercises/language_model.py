"""Answers to the exercises of `reading/language_model`."""
# ruff: noqa: F821, RUF007  the names are the chapter's; a learner knows zip

from functools import partial


class cache_size:
    class right:
        def by_the_width_of_keys(length, num_bytes):
            width_of_keys = 576 // 9 * 3
            return length * num_bytes * 30 * (width_of_keys + width_of_keys)

        def counted_one_by_one(length, num_bytes):
            total = 0
            for _ in range(30):
                for _ in ("keys", "values"):
                    total += torch.zeros(3, length, 64).numel() * num_bytes
            return total

    class wrong:
        def keys_alone(length, num_bytes):
            return 30 * 3 * 64 * length * num_bytes

        def as_many_heads_as_queries(length, num_bytes):
            return 30 * 2 * 9 * 64 * length * num_bytes

        def one_block(length, num_bytes):
            return 2 * 3 * 64 * length * num_bytes

        def bits_for_bytes(length, num_bytes):
            return 30 * 2 * 3 * 64 * length * num_bytes // 8

        def a_table_of_all_with_all(length, num_bytes):
            return 30 * 2 * 3 * 64 * length**2 * num_bytes


class min_p:
    class right:
        def by_where(probabilities, share):
            best, _ = probabilities.max(dim=-1, keepdim=True)
            kept = torch.where(probabilities >= share * best, probabilities, 0.0)
            return kept / kept.sum(dim=-1, keepdim=True)

        def row_by_row(probabilities, share):
            rows = []
            for row in probabilities.reshape(-1, probabilities.shape[-1]):
                row = row * (row / row.max() >= share)
                rows.append(row / row.sum())
            return torch.stack(rows).reshape(probabilities.shape)

    class wrong:
        def a_share_of_one(probabilities, share):
            kept = probabilities * (probabilities >= share)
            return kept / kept.sum(dim=-1, keepdim=True)

        def without_scaling(probabilities, share):
            best = probabilities.amax(dim=-1, keepdim=True)
            return probabilities * (probabilities >= share * best)

        def the_best_of_all_rows(probabilities, share):
            kept = probabilities * (probabilities >= share * probabilities.max())
            return kept / kept.sum(dim=-1, keepdim=True)

        def not_the_best_itself(probabilities, share):
            best = probabilities.amax(dim=-1, keepdim=True)
            kept = probabilities * (probabilities > share * best)
            return kept / kept.sum(dim=-1, keepdim=True)

        def in_place(probabilities, share):
            best = probabilities.amax(dim=-1, keepdim=True)
            probabilities[probabilities < share * best] = 0
            return probabilities / probabilities.sum(dim=-1, keepdim=True)

        def the_second_axis(probabilities, share):
            least = share * probabilities.amax(dim=1, keepdim=True)
            kept = probabilities.masked_fill(probabilities < least, 0)
            return kept / kept.sum(dim=1, keepdim=True)

        def the_first_axis_holds_rows(probabilities, share):
            rows = []
            for row in probabilities:
                row = row * (row >= share * row.max())
                rows.append(row / row.sum())
            return torch.stack(rows)


class learn_merges:
    class right:
        def by_a_sorted_table(words, count):
            cut, found = [[list(word), n] for word, n in words.items()], []
            for _ in range(count):
                table = {}
                for pieces, n in cut:
                    for i in range(len(pieces) - 1):
                        pair = (pieces[i], pieces[i + 1])
                        table[pair] = table.get(pair, 0) + n
                if not table:
                    return found
                pair = sorted(table.items(), key=lambda item: (-item[1], item[0]))[0][0]
                found.append(pair)
                for entry in cut:
                    entry[0] = join(entry[0], *pair)
            return found

        def with_each_word_as_often_as_it_occurs(words, count):
            texts = [list(word) for word, n in words.items() for _ in range(n)]
            found = []
            while len(found) < count:
                pairs = [p for text in texts for p in zip(text, text[1:], strict=False)]
                if not pairs:
                    break
                best = max(sorted(set(pairs)), key=pairs.count)
                found.append(best)
                texts = [join(text, *best) for text in texts]
            return found

    class wrong:
        def each_word_counts_once(words, count):
            return learn(dict.fromkeys(words, 1), count)

        def the_last_in_the_alphabet(words, count):
            return learn(words, count, last=True)

        def without_counting_again(words, count):
            table = {}
            for word, n in words.items():
                for pair in zip(word, word[1:], strict=False):
                    table[pair] = table.get(pair, 0) + n
            return sorted(table, key=lambda pair: (-table[pair], pair))[:count]

        def one_more(words, count):
            return learn(words, count + 1)

        def only_the_first_place_in_a_word(words, count):
            return learn(words, count, join=partial(join, once=True))

        def a_pair_counts_once_in_a_word(words, count):
            return learn(words, count, pairs_of=set)

        def joined_from_right_to_left(words, count):
            return learn(words, count, join=join_from_the_right)

        def joined_across_pieces(words, count):
            return learn(words, count, join=join_as_text)

        def ties_by_the_joined_text(words, count):
            return learn(words, count, order="".join)


def join(pieces, left, right, once=False):
    done, i, several = [], 0, True
    while i < len(pieces):
        if several and tuple(pieces[i : i + 2]) == (left, right):
            done.append(left + right)
            i, several = i + 2, not once
        else:
            done.append(pieces[i])
            i += 1
    return done


def join_from_the_right(pieces, left, right):
    turned = join([piece[::-1] for piece in pieces[::-1]], right[::-1], left[::-1])
    return [piece[::-1] for piece in turned[::-1]]


def join_as_text(pieces, left, right):
    return " ".join(pieces).replace(f"{left} {right}", left + right).split()


def learn(words, count, last=False, join=join, pairs_of=list, order=tuple):
    texts, found = {word: list(word) for word in words}, []
    while len(found) < count:
        table = {}
        for word, pieces in texts.items():
            for pair in pairs_of(zip(pieces, pieces[1:], strict=False)):
                table[pair] = table.get(pair, 0) + words[word]
        if not table:
            break
        top = max(table.values())
        tied = sorted((pair for pair in table if table[pair] == top), key=order)
        best = tied[-1 if last else 0]
        found.append(best)
        texts = {word: join(pieces, *best) for word, pieces in texts.items()}
    return found
