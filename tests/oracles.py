"""Slow, independent NumPy versions of what jqmix computes, in PyTorch's conventions where those are the standard."""

import jax
import numpy as np


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def lambda_returns(reward, discount, value, last, lam):
    """One sequence at a time, by recursion on the definition."""
    T1, B = reward.shape
    out = np.zeros((T1, B))
    for b in range(B):
        for t in reversed(range(T1)):
            if last[t, b] or t == T1 - 1:
                out[t, b] = value[t, b]
            else:
                mixed = (1 - lam) * value[t + 1, b] + lam * out[t + 1, b]
                out[t, b] = reward[t, b] + discount[t, b] * mixed
    return out


def episodes_of(last):
    """(start, end) of every stretch of transitions in one sequence: they leave the slots start … end − 1."""
    start = 0
    for t in range(len(last)):
        if last[t] or t == len(last) - 1:
            yield start, t
            start = t + 1


def per_episode(target, arrays, *args):
    """``target(reward, discount, value, …) -> G`` of one episode, its final observation included, over a batch of
    windows [T1, B]; ``arrays`` = reward, discount, value, last and whatever else leads with these axes."""
    last = arrays[3]
    out = np.zeros(last.shape)
    for b in range(last.shape[1]):
        for start, end in episodes_of(last[:, b]):
            rows = [x[start : end + 1, b].astype(np.float64) for k, x in enumerate(arrays) if k != 3]
            out[start : end + 1, b] = target(*rows, *args)
    return out


def q_star_lambda(reward, discount, value, taken, lam):
    """Harutyunyan et al.'s sum over TD errors: Q_t + Σ_k (Π_{t < j ≤ k} λ d_{j−1}) (r_k + d_k V_{k+1} − Q_k)."""
    end = len(reward) - 1
    out = np.zeros(end + 1)
    for t in range(end):
        out[t], weight = taken[t], 1.0
        for k in range(t, end):
            out[t] += weight * (reward[k] + discount[k] * value[k + 1] - taken[k])
            weight *= discount[k] * lam
    out[end] = value[end]
    return out


def sarsa(reward, discount, value, taken, lam):
    """The sum over n of (1 − λ) λ^{n−1} n-step returns that end with the value of the action taken there; the last of
    them, with all the weight that is left, ends with the episode's last value."""
    end = len(reward) - 1
    ahead = np.append(taken[:end], value[end])
    out = np.zeros(end + 1)
    for t in range(end):
        total, weight = 0.0, 1.0
        for n in range(1, end - t + 1):
            total += weight * reward[t + n - 1]
            weight *= discount[t + n - 1]
            share = lam ** (n - 1) * (1 if t + n == end else 1 - lam)
            out[t] += share * (total + weight * ahead[t + n])
    out[end] = value[end]
    return out


def watkins(reward, discount, value, was_greedy, lam):
    """The mixture of n-step returns: with 1 − λ the value after each transition, with 1 before an exploring action."""
    end = len(reward) - 1
    out = np.zeros(end + 1)
    for t in range(end):
        weight, share = 1.0, 1.0  # the product of discounts, and of the λ so far
        for k in range(t, end):
            out[t] += share * weight * reward[k]
            weight *= discount[k]
            keep = 0.0 if k + 1 == end else lam * was_greedy[k + 1]
            out[t] += share * (1 - keep) * weight * value[k + 1]
            share *= keep
    out[end] = value[end]
    return out


def n_step(reward, discount, value, n):
    end = len(reward) - 1
    out = np.zeros(end + 1)
    for t in range(end + 1):
        until = min(t + n, end)
        out[t] = sum(np.prod(discount[t:k]) * reward[k] for k in range(t, until))
        out[t] += np.prod(discount[t:until]) * value[until]
    return out


def window_priority(error, last, eta=0.9, smallest=1e-6):
    """R2D2's priority, one window at a time; error [T1, B] or [T1, B, N]."""
    out = np.zeros(error.shape[1])
    for b in range(error.shape[1]):
        sizes = [np.mean(np.abs(error[t, b])) for t in range(len(error)) if not last[t, b]]
        out[b] = eta * max(sizes) + (1 - eta) * np.mean(sizes) + smallest
    return out


def torch_gru_cell(x, h, w_ih, w_hh, b_ih, b_hh):
    """torch.nn.GRUCell: weights [3H, in], gates in the order r, z, n."""
    gi = x @ w_ih.T + b_ih
    gh = h @ w_hh.T + b_hh
    i_r, i_z, i_n = np.split(gi, 3, axis=-1)
    h_r, h_z, h_n = np.split(gh, 3, axis=-1)
    r, z = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
    n = np.tanh(i_n + r * h_n)
    return (1 - z) * n + z * h


def torch_lstm_cell(x, h, c, w_ih, w_hh, b_ih, b_hh):
    """torch.nn.LSTMCell: weights [4H, in], gates in the order i, f, g, o; gives (h, c)."""
    i, f, g, o = np.split(x @ w_ih.T + b_ih + h @ w_hh.T + b_hh, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def layer_norm(params, x, eps=1e-6):
    """Over one vector; the identity where there are no parameters."""
    if params is None:
        return x
    scaled = (x - x.mean()) / np.sqrt(x.var() + eps)
    return scaled * np.asarray(params["scale"]) + np.asarray(params["bias"])


def agent_unroll(
    params,
    obs,
    action,
    first,
    *,
    shared=True,
    agent_id=True,
    last_action=True,
    with_hidden=False,
    start=None,
    entities=None,
):
    """fc–ReLU–GRU–fc over the concatenated input, step by step: obs [T, B, N, O] → q [T, B, N, A] (and h).

    ``shared`` false: agent i's parameters are the i-th of every leaf. ``start``: (h [B, N, H], last action [B, N])
    before the first slot; without it there is no action before, and h is zero. ``entities``: (groups, targets), where
    an observation is read as a list of them.
    """
    T, B, N, _ = obs.shape
    A = np.asarray(params["head"]["bias"]).shape[-1] + (entities[0][entities[1]][0] if entities else 0)
    H = np.asarray(params["head"]["kernel"]).shape[-2]
    q, hidden = np.zeros((T, B, N, A)), np.zeros((T, B, N, H))
    for i in range(N):
        own = jax.tree.map(lambda x, i=i: np.asarray(x if shared else x[i]), params)
        kernel, bias = own["encoder"]["kernel"], own["encoder"]["bias"]
        w_ih, w_hh = (np.concatenate([own["core"][k][gate].T for gate in "rzn"]) for k in ("w_i", "w_h"))
        b_ih, b_hh = (np.concatenate([own["core"][k][gate] for gate in "rzn"]) for k in ("b_i", "b_h"))
        for b in range(B):
            h = np.zeros(H) if start is None else np.asarray(start[0][b, i], np.float64)
            for t in range(T):
                previous = np.zeros(A)
                if first[t, b]:
                    h = np.zeros_like(h)
                elif t > 0:
                    previous[action[t - 1, b, i]] = 1
                elif start is not None:
                    previous[start[1][b, i]] = 1
                seen, heard, embedded = read_entities(own.get("entities"), entities, obs[t, b, i])
                x = np.concatenate([seen, previous[: A * last_action], np.eye(N)[i][: N * (agent_id and shared)]])
                x = np.maximum(layer_norm(own["encoder"].get("norm"), x @ kernel + bias + heard), 0)
                for more in sorted(k for k in own["encoder"] if k.startswith("layer")):
                    norm = own["encoder"].get(more.replace("layer", "norm"))
                    x = np.maximum(layer_norm(norm, dense(own["encoder"][more], x)), 0)
                h = torch_gru_cell(x, h, w_ih, w_hh, b_ih, b_hh)
                out = layer_norm(own.get("norm"), h)
                aimed = [dense(own["entities"]["query"], out) @ e / np.sqrt(len(e)) for e in embedded]
                q[t, b, i] = [*dense(own["head"], out), *aimed]
                hidden[t, b, i] = h
    return (q, hidden) if with_hidden else q


def read_entities(params, entities, obs):
    """(what is left for the agent itself, what the entities add to the first layer, the targets' embeddings)."""
    if not entities:
        return obs, 0, []
    groups, targets = entities
    at, heard, embedded = 0, 0, []
    for i, (count, numbers) in enumerate(groups):
        weights, total = params[f"embeddings_{i}"], 0
        embedded.append([])
        for place in range(count):
            x = obs[at : at + numbers]
            embedded[-1].append(np.maximum(x @ weights["kernel"] + weights["bias"][place], 0))
            total = total + embedded[-1][-1]
            at += numbers
        heard = heard + dense(params[f"sums_{i}"], total / np.sqrt(count))
    return obs[at:], heard, embedded[targets]


def qmix(params, q, state, positivity=np.abs):
    """REFERENCE §3's formula, one row at a time; the weights of the hypernetworks W1 and W2 taken apart."""
    p = {k: (np.asarray(v["kernel"], np.float64), np.asarray(v["bias"], np.float64)) for k, v in params.items()}
    dense = lambda name, x: x @ p[name][0] + p[name][1]  # noqa: E731
    hidden = p["hyper"][0].shape[1] // 2
    out = np.zeros(len(q))
    for row, (q_i, s) in enumerate(zip(q, state, strict=True)):
        both = np.maximum(dense("hyper", s), 0)
        w1 = positivity(dense("w1", both[:hidden])).reshape(len(q_i), -1)
        w2 = positivity(dense("w2", both[hidden:]))
        b1 = dense("b1", s)
        v = dense("v", np.maximum(dense("v_hidden", s), 0))[0]
        x = q_i @ w1 + b1
        elu = np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)
        out[row] = elu @ w2 + v
    return out


def dense(p, x):
    """torch.nn.Linear of one vector."""
    return x @ np.asarray(p["kernel"], np.float64) + np.asarray(p["bias"], np.float64)


def mlp(p, x):
    """torch.nn.Sequential(Linear, ReLU, Linear, …) of one vector."""
    for i in range(len(p)):
        x = dense(p[f"layer{i}"], np.maximum(x, 0) if i else x)
    return x


def head(p, k, x):
    """The k-th of several two-layer perceptrons, taken out of their shared arrays: Linear, ReLU, Linear."""
    width = np.asarray(p["kernel"]).shape[1]
    mine = slice(k * width, (k + 1) * width)
    hidden = np.maximum(dense({name: np.asarray(w)[..., mine] for name, w in p["hidden"].items()}, x), 0)
    return dense({"kernel": np.asarray(p["kernel"])[k], "bias": np.asarray(p["bias"])[k]}, hidden)


def qatten(params, q, state, obs):
    """Head by head, agent by agent, as Qatten's text has it."""
    heads, _, e = np.asarray(params["query"]["kernel"]).shape
    out = np.zeros(len(q))
    for row in range(len(q)):
        strength = np.abs(mlp(params["head"], state[row]))
        for h in range(heads):
            query = head(params["query"], h, state[row])
            keys = [dense(params["key"], o)[h * e : (h + 1) * e] for o in obs[row]]
            raw = np.exp([query @ key / np.sqrt(e) for key in keys])
            out[row] += strength[h] * np.sum(raw / raw.sum() * q[row])
        out[row] += mlp(params["c"], state[row])[0]
    return out


def qplex(params, q, state, action, best, n_actions):
    """V_tot + A_tot, as QPLEX's text has it: Q_tot = Σ M'_i + Σ λ_i (Q'_i − M'_i)."""
    out = np.zeros(len(q))
    for row in range(len(q)):
        s = state[row]
        both = np.concatenate([s, np.eye(n_actions)[action[row]].reshape(-1)])
        w, v = np.abs(mlp(params["w"], s)) + 1e-10, mlp(params["v"], s)
        importance = np.zeros(q.shape[1])
        for k in range(np.asarray(params["key"]["kernel"]).shape[0]):
            key = np.abs(head(params["key"], k, s)) + 1e-10
            importance += key * sigmoid(head(params["agents"], k, s)) * sigmoid(head(params["actions"], k, both))
        own, top = w * q[row] + v, w * best[row] + v
        out[row] = np.sum(top) + np.sum(importance * (own - top))
    return out


def qtran(params, state, hidden, action, n_actions):
    """Q_jt and V of every row."""
    joint, v = np.zeros(len(state)), np.zeros(len(state))
    for row in range(len(state)):
        pairs = zip(np.asarray(hidden[row]), np.eye(n_actions)[np.asarray(action[row])], strict=True)
        encoded = sum(mlp(params["encode"], np.concatenate(pair)) for pair in pairs)
        joint[row] = mlp(params["q"], np.concatenate([state[row], encoded]))[0]
        v[row] = mlp(params["v"], state[row])[0]
    return joint, v


def qtran_constraints(params, q, state, joint, n_actions):
    """½ (L_opt + 0.1 L_nopt) of every row."""
    opt, nopt = qtran_errors(params, q, state, joint, n_actions)
    return 0.5 * (opt + 0.1 * nopt)


def qtran_errors(params, q, state, joint, n_actions):
    """L_opt and L_nopt of every row."""
    taken, v = qtran(params, state, joint.hidden, joint.action, n_actions)
    at_best, _ = qtran(params, state, joint.hidden, joint.greedy, n_actions)
    opt = joint.best.sum(-1) - at_best + v
    nopt = np.minimum(q.sum(-1) - taken + v, 0)
    return opt**2, nopt**2


def central(params, q, state):
    """The unconstrained mixer of weighted QMIX's Q̂*."""
    rows = zip(q, state, strict=True)
    return np.array([mlp(params["q"], np.concatenate([s, x]))[0] + mlp(params["v"], s)[0] for x, s in rows])


def wqmix_weight(name, alpha, q_tot, target, value, is_greedy):
    """One slot's weight, by the cases of the paper."""
    if name == "ow_qmix":
        return 1.0 if q_tot < target else alpha
    return 1.0 if is_greedy or target > value else alpha


def rmsprop(params, grads, lr, alpha=0.99, eps=1e-5):
    """torch.optim.RMSprop: ε outside the square root. ``grads`` is a list of steps."""
    square = np.zeros_like(params)
    for g in grads:
        square = alpha * square + (1 - alpha) * g * g
        params = params - lr * g / (np.sqrt(square) + eps)
    return params


def adam(params, grads, lr, b1=0.9, b2=0.999, eps=1e-8):
    """torch.optim.Adam."""
    m, v = np.zeros_like(params), np.zeros_like(params)
    for t, g in enumerate(grads, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        params = params - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return params


def radam(params, grads, lr, b1=0.9, b2=0.999, eps=1e-8):
    """Liu et al. (2020), algorithm 2, as torch.optim.RAdam: no second moment until its variance is tractable."""
    m, v = np.zeros_like(params), np.zeros_like(params)
    longest = 2 / (1 - b2) - 1
    for t, g in enumerate(grads, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        step = m / (1 - b1**t)
        length = longest - 2 * t * b2**t / (1 - b2**t)
        if length > 5:
            rectified = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            step = np.sqrt(rectified) * step / (np.sqrt(v / (1 - b2**t)) + eps)
        params = params - lr * step
    return params


# Predator–prey (REFERENCE of 2102.03479's game), cell by cell in plain Python


def predator_prey_step(size, punishment, agents, frozen, prey, alive, actions, agent_order, prey_order, preference):
    """Lists of (row, column) and of flags; the same four after a step, and the reward."""
    ways = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    agents, frozen, prey, alive = list(agents), list(frozen), list(prey), list(alive)

    def taken():
        return {c for c, gone in zip(agents, frozen, strict=True) if not gone} | {
            c for c, lives in zip(prey, alive, strict=True) if lives
        }

    def neighbours(cell):
        return [(cell[0] + dr, cell[1] + dc) for dr, dc in ways]

    def inside(cell):
        return 0 <= cell[0] < size and 0 <= cell[1] < size

    for i in agent_order:
        if not frozen[i] and actions[i] < 4:
            there = neighbours(agents[i])[actions[i]]
            if inside(there) and there not in taken():
                agents[i] = there
    reward = 0.0
    for k, j in enumerate(prey_order):
        if not alive[j]:
            continue
        catchers = [
            i for i in range(len(agents)) if not frozen[i] and actions[i] == 5 and agents[i] in neighbours(prey[j])
        ]
        if len(catchers) >= 2:
            reward += 10
            alive[j] = False
            for i in catchers:
                frozen[i] = True
            continue
        reward += punishment if catchers else 0
        free = [w for w in range(4) if inside(neighbours(prey[j])[w]) and neighbours(prey[j])[w] not in taken()]
        if free:
            prey[j] = neighbours(prey[j])[max(free, key=lambda w: preference[k][w])]
    return agents, frozen, prey, alive, reward


def predator_prey_seen(size, sight, agents, frozen, prey, alive):
    """(observations [N][2·sight+1 squared · 2], state, available actions [N][6])."""
    grid = np.zeros((size, size, 2))
    for what, cells, there in ((0, agents, [not f for f in frozen]), (1, prey, alive)):
        for (r, c), present in zip(cells, there, strict=True):
            if present:
                grid[r, c, what] = 1
    observations, available = [], []
    for (r, c), gone in zip(agents, frozen, strict=True):
        patch = [
            grid[r + dr, c + dc, what] if 0 <= r + dr < size and 0 <= c + dc < size else 0
            for dr in range(-sight, sight + 1)
            for dc in range(-sight, sight + 1)
            for what in (0, 1)
        ]
        observations.append([0] * len(patch) if gone else patch)
        beside = any(lives and abs(r - pr) + abs(c - pc) == 1 for (pr, pc), lives in zip(prey, alive, strict=True))
        moves = [c + 1 < size, r + 1 < size, c > 0, r > 0]
        available.append([False] * 4 + [True, False] if gone else [*moves, True, beside])
    return observations, grid.reshape(-1), available
