"""Answers to the exercises of `memory/bounded`."""
# ruff: noqa: F821  the names are the chapter's


class slot_of:
    class right:
        def by_steps(token, window, sinks):
            slot = token
            while slot >= sinks + window:
                slot -= window
            return slot

        def by_list(token, window, sinks):
            slots = [*range(sinks)]
            while len(slots) <= token:
                slots += range(sinks, sinks + window)
            return slots[token]

    class wrong:
        def sinks_are_in_the_ring(token, window, sinks):
            return token % (sinks + window)

        def starts_in_the_middle(token, window, sinks):
            return token if token < sinks else sinks + token % window

        def sinks_are_forgotten(token, window, sinks):
            return token % window

        def stays_at_the_end(token, window, sinks):
            return min(token, sinks + window - 1)


class layers_needed:
    class right:
        def by_counting(window, distance):
            layers, reached = 1, window - 1
            while reached < distance:
                layers, reached = layers + 1, reached + window - 1
            return layers

        def by_whole_steps(window, distance):
            return (max(distance, 1) - 1) // (window - 1) + 1

    class wrong:
        def counts_without_the_query(window, distance):
            return max(1, -(-distance // window))

        def rounds_down(window, distance):
            return max(1, distance // (window - 1))

        def one_too_many(window, distance):
            return 1 + distance // (window - 1)

        def no_layer_for_itself(window, distance):
            return -(-distance // (window - 1))

        def doubles(window, distance):
            layers, reached = 1, window - 1
            while reached < distance:
                layers, reached = layers + 1, 2 * reached
            return layers


class scores_inside:
    class right:
        def by_token(query, keys, rotary, sinks, window):
            count = keys.shape[1]
            kept = [t for t in range(count) if t < sinks or t >= count - window]
            last, scores = torch.tensor([len(kept) - 1]), []
            turned, _ = rotary(query, query, last)
            for place, token in enumerate(kept):
                key = keys[:, token, None]
                key, _ = rotary(key, key, torch.tensor([place]))
                scores.append((turned * key).sum(dim=-1))
            return torch.stack(scores, dim=-1)

        def by_moving_sinks(query, keys, rotary, sinks, window):
            count = keys.shape[1]
            tokens = torch.arange(count)
            places = tokens.clone()
            places[:sinks] += max(0, count - sinks - window)
            _, turned = rotary(keys, keys, places)
            kept = (tokens < sinks) | (tokens >= count - window)
            turned_query, _ = rotary(query, query, places[-1:])
            return turned_query @ turned[:, kept].mT

    class wrong:
        def at_positions_of_the_text(query, keys, rotary, sinks, window):
            count = keys.shape[1]
            tokens = torch.arange(count)
            _, turned = rotary(keys, keys, tokens)
            kept = (tokens < sinks) | (tokens >= count - window)
            turned_query, _ = rotary(query, query, tokens[-1:])
            return turned_query @ turned[:, kept].mT

        def query_stays_in_the_text(query, keys, rotary, sinks, window):
            count = keys.shape[1]
            recent = max(sinks, count - window)
            kept = torch.cat([keys[:, :sinks], keys[:, recent:]], dim=1)
            _, turned = rotary(kept, kept, torch.arange(kept.shape[1]))
            turned_query, _ = rotary(query, query, torch.tensor([count - 1]))
            return turned_query @ turned.mT

        def query_is_not_turned(query, keys, rotary, sinks, window):
            recent = max(sinks, keys.shape[1] - window)
            kept = torch.cat([keys[:, :sinks], keys[:, recent:]], dim=1)
            _, turned = rotary(kept, kept, torch.arange(kept.shape[1]))
            return query @ turned.mT

        def sinks_twice_in_short_texts(query, keys, rotary, sinks, window):
            recent = max(0, keys.shape[1] - window)
            kept = torch.cat([keys[:, :sinks], keys[:, recent:]], dim=1)
            places = torch.arange(kept.shape[1])
            _, turned = rotary(kept, kept, places)
            turned_query, _ = rotary(query, query, places[-1:])
            return turned_query @ turned.mT

        def sinks_count_as_window(query, keys, rotary, sinks, window):
            recent = max(sinks, keys.shape[1] - window + sinks)
            kept = torch.cat([keys[:, :sinks], keys[:, recent:]], dim=1)
            places = torch.arange(kept.shape[1])
            _, turned = rotary(kept, kept, places)
            turned_query, _ = rotary(query, query, places[-1:])
            return turned_query @ turned.mT

        def a_text_shorter_than_the_window(query, keys, rotary, sinks, window):
            count = keys.shape[1]
            recent = torch.arange(count - window, count)
            kept = keys[
                :, torch.cat([torch.arange(min(sinks, count)), recent]).unique()
            ]
            places = torch.arange(kept.shape[1])
            _, turned = rotary(kept, kept, places)
            turned_query, _ = rotary(query, query, places[-1:])
            return turned_query @ turned.mT
