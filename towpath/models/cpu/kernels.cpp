// What the layers, the head, the sampler and the optimizer do between matrix products, each in one pass over its rows: read once, reckoned in
// float32, rounded once. Rows are independent of each other and of the number of threads. Held to plain.py by tests.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct bfloat16 {
    uint16_t bits;
};

inline float as_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline uint32_t as_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

inline float get(float x) { return x; }
inline float get(bfloat16 x) { return as_float(uint32_t(x.bits) << 16); }

template <class T> inline T put(float x);
template <> inline float put<float>(float x) { return x; }
template <> inline bfloat16 put<bfloat16>(float x) {
    uint32_t bits = as_bits(x);
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

template <class T> inline float rounded(float x) { return get(put<T>(x)); }

// e^x to 2e-7 of itself for x up to 88; zero below -87, so that what is barred counts for nothing.
inline float power(float x) {
    x = x > 88.0f ? 88.0f : x;
    float whole = __builtin_nearbyintf(x * 1.44269504f);
    float rest = __builtin_fmaf(whole, -0.693359375f, x);
    rest = __builtin_fmaf(whole, 2.12194440e-4f, rest);
    float sum = 1.98756915e-4f;
    sum = __builtin_fmaf(sum, rest, 1.39819995e-3f);
    sum = __builtin_fmaf(sum, rest, 8.33345205e-3f);
    sum = __builtin_fmaf(sum, rest, 4.16657962e-2f);
    sum = __builtin_fmaf(sum, rest, 1.66666657e-1f);
    sum = __builtin_fmaf(sum, rest, 0.5f);
    sum = __builtin_fmaf(sum, rest * rest, rest) + 1.0f;
    return x < -87.0f ? 0.0f : sum * as_float(uint32_t(int32_t(whole) + 127) << 23);
}

inline float sigmoid(float x) { return 1.0f / (1.0f + power(-x)); }

template <class T> inline float highest(const T* x, long size) {
    float most = -INFINITY;
#pragma omp simd reduction(max : most)
    for (long i = 0; i < size; i++) {
        float value = get(x[i]);
        most = value > most ? value : most;
    }
    return most;
}

const long VECTOR = 16;

typedef float wide __attribute__((vector_size(64)));
typedef int32_t whole_wide __attribute__((vector_size(64)));
typedef uint16_t half_wide __attribute__((vector_size(32)));

inline wide load(const float* x) {
    wide read;
    std::memcpy(&read, x, sizeof(read));
    return read;
}

inline wide load(const bfloat16* x) {
    half_wide read;
    std::memcpy(&read, x, sizeof(read));
    return (wide)(__builtin_convertvector(read, whole_wide) << 16);
}

#ifdef __clang__
#define MIX(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MIX(a, b, ...) __builtin_shuffle(a, b, (whole_wide){__VA_ARGS__})
#endif

// x becomes e^(x - the highest), and their sum; goes on to the end of a vector of floats, where zeros are left.
inline float powers(float* x, long size) {
    long whole = (size + VECTOR - 1) / VECTOR * VECTOR;
    for (long i = size; i < whole; i++) x[i] = -INFINITY;
    float most = highest(x, whole), sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < whole; i++) sum += x[i] = power(x[i] - most);
    return sum;
}

#define ROWS _Pragma("omp parallel for schedule(static) num_threads(threads)")
#define EACH _Pragma("omp simd")

template <class T> void rms_norm(const T* x, const T* weight, T* out, float* scale, long rows, long width, float eps, long threads) {
    ROWS for (long row = 0; row < rows; row++) {
        const T* in = x + row * width;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (long i = 0; i < width; i++) sum += get(in[i]) * get(in[i]);
        float factor = 1.0f / std::sqrt(sum / width + eps);
        scale[row] = factor;
        EACH for (long i = 0; i < width; i++) out[row * width + i] = put<T>(rounded<T>(get(in[i]) * factor) * get(weight[i]));
    }
}

template <class T> void apply_rms_norm(const T* x, const float* scale, const T* weight, T* out, long rows, long width, long threads) {
    ROWS for (long row = 0; row < rows; row++)
        EACH for (long i = 0; i < width; i++) out[row * width + i] = put<T>(rounded<T>(get(x[row * width + i]) * scale[row]) * get(weight[i]));
}

// `parts` gradients by the weight, each of an equal share of the rows, to be added up: or null.
template <class T>
void rms_norm_backward(const T* grad, const T* x, const float* scale, const T* weight, const T* more, T* out, float* by_weight, long parts, long rows,
               long width, long threads) {
    long share = (rows + parts - 1) / parts;
    ROWS for (long part = 0; part < parts; part++) {
        long end = (part + 1) * share < rows ? (part + 1) * share : rows;
        for (long row = part * share; row < end; row++) {
            const T *g = grad + row * width, *in = x + row * width, *add = more + row * width;
            float factor = scale[row], mean = 0;
#pragma omp simd reduction(+ : mean)
            for (long i = 0; i < width; i++) mean += get(g[i]) * get(weight[i]) * get(in[i]);
            mean *= factor * factor / width;
            EACH for (long i = 0; i < width; i++)
                out[row * width + i] = put<T>((get(g[i]) * get(weight[i]) - get(in[i]) * mean) * factor + get(add[i]));
            if (by_weight)
                EACH for (long i = 0; i < width; i++) by_weight[part * width + i] += get(g[i]) * get(in[i]) * factor;
        }
    }
}

template <class T> void swiglu(const T* inner, T* out, long rows, long width, long threads) {
    ROWS for (long row = 0; row < rows; row++) {
        const T *gate = inner + row * 2 * width, *up = gate + width;
        EACH for (long i = 0; i < width; i++) out[row * width + i] = put<T>(get(gate[i]) * sigmoid(get(gate[i])) * get(up[i]));
    }
}

// The gated product again, and the gradient by both halves.
template <class T> void swiglu_backward(const T* grad, const T* inner, T* out, T* by_inner, long rows, long width, long threads) {
    ROWS for (long row = 0; row < rows; row++) {
        const T *gate = inner + row * 2 * width, *up = gate + width, *g = grad + row * width;
        T *by_gate = by_inner + row * 2 * width, *by_up = by_gate + width;
        EACH for (long i = 0; i < width; i++) {
            float in = get(gate[i]), open = sigmoid(in), opened = in * open, slope = get(g[i]);
            out[row * width + i] = put<T>(opened * get(up[i]));
            by_up[i] = put<T>(slope * opened);
            by_gate[i] = put<T>(slope * get(up[i]) * open * (1.0f + in - opened));
        }
    }
}

template <class T> inline void turned(const T* in, const T* cosine, const T* sine, float sign, float scale, T* out, long half) {
    EACH for (long i = 0; i < half; i++) {
        float one = get(in[i]), two = get(in[i + half]), c = get(cosine[i]) * scale, s = get(sine[i]) * sign * scale;
        out[i] = put<T>(one * c - two * s);
        out[i + half] = put<T>(two * c + one * s);
    }
}

// In lines, tokens lie side by side in `length` places; a line's own are those from its `begin` to the next one's. The rest are zeros.
#define PLACES \
    ROWS for (long cell = 0; cell < lines * length; cell++) \
        if (long line = cell / length, place = cell % length, token = begin[line] + place, none = token >= begin[line + 1]; true)

template <class T>
void rotate_and_split_qkv(const T* qkv, const T* cosine, const T* sine, const long* begin, T* q, T* k, T* v, long lines, long length, long heads, long key_heads,
          long width, float scale, long threads) {
    long half = width / 2;
    PLACES {
        const T *in = qkv + token * (heads + 2 * key_heads) * width, *c = cosine + cell * half, *s = sine + cell * half;
        for (long h = 0; h < heads; h++) {
            T* there = q + ((line * heads + h) * length + place) * width;
            if (none) std::memset(there, 0, width * sizeof(T));
            else turned(in + h * width, c, s, 1.0f, scale, there, half);
        }
        for (long h = 0; h < key_heads; h++) {
            long there = ((line * key_heads + h) * length + place) * width;
            if (none) {
                std::memset(k + there, 0, width * sizeof(T));
                std::memset(v + there, 0, width * sizeof(T));
            } else {
                turned(in + (heads + h) * width, c, s, 1.0f, 1.0f, k + there, half);
                std::memcpy(v + there, in + (heads + key_heads + h) * width, width * sizeof(T));
            }
        }
    }
}

template <class T>
void rotate_and_split_qkv_backward(const T* by_q, const T* by_k, const T* by_v, const T* cosine, const T* sine, const long* begin, T* grad, long lines, long length,
               long heads, long key_heads, long width, float scale, long threads) {
    long half = width / 2;
    PLACES {
        if (none) continue;
        T* out = grad + token * (heads + 2 * key_heads) * width;
        const T *c = cosine + cell * half, *s = sine + cell * half;
        for (long h = 0; h < heads; h++) turned(by_q + ((line * heads + h) * length + place) * width, c, s, -1.0f, scale, out + h * width, half);
        for (long h = 0; h < key_heads; h++) {
            long there = ((line * key_heads + h) * length + place) * width;
            turned(by_k + there, c, s, -1.0f, 1.0f, out + (heads + h) * width, half);
            std::memcpy(out + (heads + key_heads + h) * width, by_v + there, width * sizeof(T));
        }
    }
}

template <class T>
void split_heads(const T* rows, const long* begin, T* out, long lines, long length, long heads, long width, long threads) {
    PLACES for (long h = 0; h < heads; h++) {
        T* there = out + ((line * heads + h) * length + place) * width;
        if (none) std::memset(there, 0, width * sizeof(T));
        else std::memcpy(there, rows + (token * heads + h) * width, width * sizeof(T));
    }
}

template <class T>
void merge_heads(const T* by_head, const long* begin, T* rows, long lines, long length, long heads, long width, long threads) {
    PLACES if (!none) for (long h = 0; h < heads; h++)
        std::memcpy(rows + (token * heads + h) * width, by_head + ((line * heads + h) * length + place) * width, width * sizeof(T));
}

// Softmax in place over `keys` scores plus their line's mask; what the mask bars at a row's end is not looked at.
template <class T> void masked_softmax(T* scores, const T* mask, long lines, long heads, long length, long keys, long threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> room(keys + VECTOR);
        float* power_of = room.data();
#pragma omp for schedule(static)
        for (long token = 0; token < lines * length; token++) {
            const T* barred = mask + token * keys;
            long line = token / length, place = token % length, seen = keys;
            while (seen > 1 && get(barred[seen - 1]) < -1e30f) seen--;
            for (long head = 0; head < heads; head++) {
                T* x = scores + ((line * heads + head) * length + place) * keys;
                EACH for (long i = 0; i < seen; i++) power_of[i] = get(x[i]) + get(barred[i]);
                float share = 1.0f / powers(power_of, seen);
                EACH for (long i = 0; i < seen; i++) x[i] = put<T>(power_of[i] * share);
                std::memset(x + seen, 0, (keys - seen) * sizeof(T));
            }
        }
    }
}

// Sums of sixteen vectors: x[i] is the key whose number is i with its four bits turned round, so that they come out in order.
inline wide sums(wide* x) {
    for (int i = 0; i < 8; i++)
        x[i] = MIX(x[i], x[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               MIX(x[i], x[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; i++)
        x[i] = MIX(x[i], x[i + 4], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
               MIX(x[i], x[i + 4], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++)
        x[i] = MIX(x[i], x[i + 2], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
               MIX(x[i], x[i + 2], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
    return MIX(x[0], x[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           MIX(x[0], x[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

// G queries of W against `count` keys, and the values mixed by what that gives; a key and a value are read once for all of them. What is
// read after them is asked for ahead: values while keys are read, the `next` keys while values are.
template <class T, long W, long G>
void mixed_by(const T* query, const T* key, const T* value, const T* barred, const T* next, float* score, long stride, T* out, long count) {
    const long parts = W / VECTOR, turned_round[VECTOR] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};
    wide asked[G][parts], product[G][VECTOR] = {};
    for (long g = 0; g < G; g++)
        for (long part = 0; part < parts; part++) asked[g][part] = load(query + g * W + part * VECTOR);
    for (long begin = 0; begin < count; begin += VECTOR) {
        for (long i = 0; i < VECTOR && begin + i < count; i++) {
            wide read[parts];
            for (long part = 0; part < parts; part++) read[part] = load(key + (begin + i) * W + part * VECTOR);
            for (long w = 0; w < W; w += 64 / long(sizeof(T))) __builtin_prefetch(value + (begin + i) * W + w);
            for (long g = 0; g < G; g++) {
                wide sum = read[0] * asked[g][0];
                for (long part = 1; part < parts; part++) sum += read[part] * asked[g][part];
                product[g][turned_round[i]] = sum;
            }
        }
        for (long g = 0; g < G; g++) {
            wide sum = sums(product[g]);
            std::memcpy(score + g * stride + begin, &sum, sizeof(sum));
        }
    }
    float share[G];
    for (long g = 0; g < G; g++) {
        float* told = score + g * stride;
        EACH for (long i = 0; i < count; i++) told[i] += get(barred[i]);
        share[g] = 1.0f / powers(told, count);
    }
    wide sum[G][parts] = {};
    for (long i = 0; i < count; i++) {
        for (long w = 0; w < W; w += 64 / long(sizeof(T))) __builtin_prefetch(next + i * W + w);
        for (long part = 0; part < parts; part++) {
            wide read = load(value + i * W + part * VECTOR);
            for (long g = 0; g < G; g++) sum[g][part] += read * score[g * stride + i];
        }
    }
    for (long g = 0; g < G; g++)
        for (long w = 0; w < W; w++) out[g * W + w] = put<T>(sum[g][w / VECTOR][w % VECTOR] * share[g]);
}

// The same for any width, a query at a time.
template <class T>
void mixed_any(const T* query, const T* key, const T* value, const T* barred, float* score, long width, T* out, long count) {
    std::vector<float> room(2 * width);
    float *wide_query = room.data(), *sum = wide_query + width;
    for (long w = 0; w < width; w++) wide_query[w] = get(query[w]);
    for (long i = 0; i < count; i++) {
        const T* read = key + i * width;
        float product = 0;
#pragma omp simd reduction(+ : product)
        for (long w = 0; w < width; w++) product += wide_query[w] * get(read[w]);
        score[i] = product + get(barred[i]);
    }
    float share = 1.0f / powers(score, count);
    for (long i = 0; i < count; i++) {
        const T* read = value + i * width;
        float weight = score[i];
        EACH for (long w = 0; w < width; w++) sum[w] += weight * get(read[w]);
    }
    EACH for (long w = 0; w < width; w++) out[w] = put<T>(sum[w] * share);
}

// One more token of every row: its key and value take their column, and its queries read all columns up to it.
template <class T>
void decode_attention(const T* qkv, const T* cosine, const T* sine, T* keys, T* values, const T* mask, T* mixed, long rows, long heads, long key_heads,
              long width, long columns, long seen, float scale, long threads) {
    const long half = width / 2, group = heads / key_heads, count = seen + 1, stride = (count + VECTOR - 1) / VECTOR * VECTOR;
#pragma omp parallel num_threads(threads)
    {
        std::vector<T> queries(group * width);
        std::vector<float> score(group * stride);
#pragma omp for schedule(static)
        for (long pair = 0; pair < rows * key_heads; pair++) {
            long row = pair / key_heads, head = pair % key_heads;
            const T *in = qkv + row * (heads + 2 * key_heads) * width, *c = cosine + row * half, *s = sine + row * half;
            const T* barred = mask + row * columns;
            T *key = keys + pair * columns * width, *value = values + pair * columns * width, *out = mixed + (row * heads + head * group) * width;
            turned(in + (heads + head) * width, c, s, 1.0f, 1.0f, key + seen * width, half);
            std::memcpy(value + seen * width, in + (heads + key_heads + head) * width, width * sizeof(T));
            for (long g = 0; g < group; g++) turned(in + (head * group + g) * width, c, s, 1.0f, scale, &queries[g * width], half);
            for (long g = 0, some = 0; g < group; g += some) {
                some = width != 64 ? 1 : group - g < 4 ? group - g : 4;
                const T *query = &queries[g * width], *next = key + columns * width;
                auto* by = some == 4 ? mixed_by<T, 64, 4> : some == 3 ? mixed_by<T, 64, 3> : some == 2 ? mixed_by<T, 64, 2> : mixed_by<T, 64, 1>;
                if (width == 64)
                    by(query, key, value, barred, next, score.data(), stride, out + g * width, count);
                else
                    mixed_any(query, key, value, barred, score.data(), width, out + g * width, count);
            }
        }
    }
}

// log p of each row's target and, where asked, the row's entropy; where asked the logits become p, less one at the target.
template <class T>
void token_logprobs(T* logits, const int64_t* target, float* logp, float* entropy, long keep, long rows, long words, float sharp, long threads) {
    ROWS for (long row = 0; row < rows; row++) {
        T* x = logits + row * words;
        float most = highest(x, words), sum = 0, product = 0;
        if (entropy) {
#pragma omp simd reduction(+ : sum, product)
            for (long i = 0; i < words; i++) {
                float below = (get(x[i]) - most) * sharp, p = power(below);
                sum += p;
                product += p * below;
            }
            entropy[row] = std::log(sum) - product / sum;
        } else {
#pragma omp simd reduction(+ : sum)
            for (long i = 0; i < words; i++) sum += power((get(x[i]) - most) * sharp);
        }
        float chosen = (get(x[target[row]]) - most) * sharp, share = 1.0f / sum;
        logp[row] = chosen - std::log(sum);
        if (keep) {
            EACH for (long i = 0; i < words; i++) x[i] = put<T>(power((get(x[i]) - most) * sharp) * share);
            x[target[row]] = put<T>(power(chosen) * share - 1.0f);
        }
    }
}

// Sums of squares of equal shares of all numbers.
template <class T> void sum_of_squares(const T* x, double* sums, long parts, long size, long threads) {
    ROWS for (long part = 0; part < parts; part++) {
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (long i = size * part / parts; i < size * (part + 1) / parts; i++) sum += double(get(x[i])) * get(x[i]);
        sums[part] = sum;
    }
}

// A weight as it lies in memory: whole, or the nearest bfloat16 and the bits that it lacks, see halves.py.
struct Whole {
    float* x;
    float read(long i) const { return x[i]; }
    void write(long i, float value) const { x[i] = value; }
};

struct Halves {
    bfloat16* upper;
    int16_t* rest;
    float read(long i) const { return as_float((uint32_t(upper[i].bits) << 16) + uint32_t(int32_t(rest[i]))); }
    void write(long i, float value) const {
        upper[i] = put<bfloat16>(value);
        int32_t over = int32_t(as_bits(value) - (uint32_t(upper[i].bits) << 16));
        rest[i] = int16_t(over > 0x7fff ? 0x7fff : over);
    }
};

template <class W, class T>
inline void moved_part(W weight, const T* grad, float* mean, float* square, long begin, long end, float scale, float first, float second, float rate,
                       float spread, float eps, float kept) {
    EACH for (long i = begin; i < end; i++) {
        float slope = get(grad[i]) * scale;
        float m = mean[i] * first + slope * (1 - first), v = square[i] * second + slope * slope * (1 - second);
        mean[i] = m, square[i] = v;
        weight.write(i, weight.read(i) * kept - rate * m / (std::sqrt(v) * spread + eps));
    }
}

// A step of AdamW; without a rest the weight is float32.
template <class T>
void adamw_step(void* weight, int16_t* rest, const T* grad, float* mean, float* square, long size, float scale, float first, float second, float rate,
           float spread, float eps, float kept, long threads) {
    const long block = 4096;
    ROWS for (long begin = 0; begin < size; begin += block) {
        long end = begin + block < size ? begin + block : size;
        if (rest)
            moved_part(Halves{(bfloat16*)weight, rest}, grad, mean, square, begin, end, scale, first, second, rate, spread, eps, kept);
        else
            moved_part(Whole{(float*)weight}, grad, mean, square, begin, end, scale, first, second, rate, spread, eps, kept);
    }
}

// The token at which the running mass passes uniform x total, and its log p: first the block, then the place in it.
template <class T>
void sample_tokens(const T* logits, const float* temperature, const double* uniform, int64_t* token, float* logp, long rows, long words, long threads) {
    const long block = 256;
    ROWS for (long row = 0; row < rows; row++) {
        const T* x = logits + row * words;
        float most = highest(x, words), sharp = 1.0f / temperature[row];
        double total = 0, before = 0;
        std::vector<double> running;
        running.reserve(words / block + 1);
        for (long begin = 0; begin < words; begin += block) {
            long end = begin + block < words ? begin + block : words;
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (long i = begin; i < end; i++) sum += power((get(x[i]) - most) * sharp);
            running.push_back(total += sum);
        }
        double goal = uniform[row] * total;
        long chosen = 0, last = -1;
        while (chosen + 1 < long(running.size()) && running[chosen] <= goal) before = running[chosen++];
        for (long i = chosen * block; i < words && i < (chosen + 1) * block; i++) {
            float p = power((get(x[i]) - most) * sharp);
            if (p > 0) last = i;
            if ((before += p) > goal && p > 0) break;
        }
        token[row] = last < 0 ? chosen * block : last;
        logp[row] = (get(x[token[row]]) - most) * sharp - float(std::log(total));
    }
}

}  // namespace

#define OFFER(kernel) \
    extern "C" { \
    decltype(&kernel<float>) kernel##_float32 = kernel<float>; \
    decltype(&kernel<bfloat16>) kernel##_bfloat16 = kernel<bfloat16>; \
    }

OFFER(rms_norm)
OFFER(apply_rms_norm)
OFFER(rms_norm_backward)
OFFER(swiglu)
OFFER(swiglu_backward)
OFFER(rotate_and_split_qkv)
OFFER(rotate_and_split_qkv_backward)
OFFER(split_heads)
OFFER(merge_heads)
OFFER(masked_softmax)
OFFER(decode_attention)
OFFER(token_logprobs)
OFFER(sum_of_squares)
OFFER(adamw_step)
OFFER(sample_tokens)
