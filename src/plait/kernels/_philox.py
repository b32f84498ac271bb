"""The C code of random numbers: Philox 4x64 with ten rounds, many counters side by side."""

from __future__ import annotations

__all__ = ["philox"]

# Counters are (n, 0, 0, segment). After the first round a is the key whatever n is, so that the second round's product
# of it is the same for all: of twenty products eighteen are left. With AVX-512 three vectors of eight counters and
# eight counters in general registers are computed in one loop, since these wait for other units of the processor.
_PHILOX = """\
#define BY_A 0xD2E7470EE14C6C93ULL
#define BY_C 0xCA5A826395121157ULL
#define UNROLL _Pragma("GCC unroll 10")
typedef unsigned __int128 wide_t;
/* the keys of all rounds, and what the first two rounds leave in every counter */
typedef struct { uint64_t for_a[10], for_c[10], high, low; } rounds_t;
static rounds_t schedule(const uint64_t *key) {
    rounds_t s;
    s.for_a[0] = key[0]; s.for_c[0] = key[1];
    for (int r = 1; r < 10; r++) {
        s.for_a[r] = s.for_a[r - 1] + 0x9E3779B97F4A7C15ULL;
        s.for_c[r] = s.for_c[r - 1] + 0xBB67AE8584CAA73BULL;
    }
    const wide_t p = (wide_t)key[0] * BY_A;
    s.high = (uint64_t)(p >> 64) ^ s.for_c[1]; s.low = (uint64_t)p;
    return s;
}
/* the state of a counter after two rounds, and one round more */
#define BEGIN(n, a, b, c, d) { \\
    const wide_t p = (wide_t)(n) * BY_A, q = (wide_t)((uint64_t)(p >> 64) ^ segment ^ s->for_c[0]) * BY_C; \\
    a = (uint64_t)(q >> 64) ^ s->for_a[1]; b = (uint64_t)q; c = (uint64_t)p ^ s->high; d = s->low; }
#define GO_ON(r, a, b, c, d) { \\
    const wide_t p = (wide_t)a * BY_A, q = (wide_t)c * BY_C; \\
    a = (uint64_t)(q >> 64) ^ b ^ s->for_a[r]; b = (uint64_t)q; \\
    c = (uint64_t)(p >> 64) ^ d ^ s->for_c[r]; d = (uint64_t)p; }
static inline void eight(uint64_t n, uint64_t segment, const rounds_t *s, float *u) {
    uint64_t a, b, c, d;
    BEGIN(n, a, b, c, d)
    UNROLL for (int r = 2; r < 10; r++) GO_ON(r, a, b, c, d)
    const uint64_t words[4] = {a, b, c, d};
    memcpy(u, words, sizeof words);
}
#ifdef __AVX512F__
#define VECTORS 3
#define SCALARS 8
#define AT_ONCE (64 * VECTORS + 8 * SCALARS)
static inline void product(__m512i x, uint64_t by, __m512i *high, __m512i *low) {
    const __m512i l = _mm512_set1_epi64((int64_t)(by & 0xffffffff)), h = _mm512_set1_epi64((int64_t)(by >> 32));
    const __m512i up = _mm512_srli_epi64(x, 32), mask = _mm512_set1_epi64(0xffffffff);
    const __m512i ll = _mm512_mul_epu32(x, l), lh = _mm512_mul_epu32(x, h);
    const __m512i t = _mm512_add_epi64(_mm512_mul_epu32(up, l), _mm512_srli_epi64(ll, 32));
    const __m512i v = _mm512_add_epi64(lh, _mm512_and_si512(t, mask));
    *high = _mm512_add_epi64(_mm512_add_epi64(_mm512_mul_epu32(up, h), _mm512_srli_epi64(t, 32)),
                             _mm512_srli_epi64(v, 32));
    *low = _mm512_mask_shuffle_epi32(ll, 0xaaaa, v, _MM_PERM_CCAA);
}
#define ALL(x) _mm512_set1_epi64((int64_t)(x))
#define MIX(x, y, how) _mm512_shuffle_i64x2(x, y, how)
#define XOR3(x, y, z) _mm512_ternarylogic_epi64(x, y, z, 0x96)
static void at_once(uint64_t n, uint64_t segment, const rounds_t *s, float *u) {
    uint64_t a[SCALARS], b[SCALARS], c[SCALARS], d[SCALARS];
    UNROLL for (int j = 0; j < SCALARS; j++) BEGIN(n + 8 * VECTORS + j, a[j], b[j], c[j], d[j])
    __m512i va[VECTORS], vb[VECTORS], vc[VECTORS], vd[VECTORS], ph, pl, qh, ql;
    UNROLL for (int j = 0; j < VECTORS; j++) {
        product(_mm512_add_epi64(ALL(n + 8 * j), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0)), BY_A, &ph, &pl);
        product(XOR3(ph, ALL(segment), ALL(s->for_c[0])), BY_C, &qh, &ql);
        va[j] = _mm512_xor_si512(qh, ALL(s->for_a[1])); vb[j] = ql;
        vc[j] = _mm512_xor_si512(pl, ALL(s->high)); vd[j] = ALL(s->low);
    }
    UNROLL for (int r = 2; r < 10; r++) {
        UNROLL for (int j = 0; j < VECTORS; j++) {
            product(va[j], BY_A, &ph, &pl);
            product(vc[j], BY_C, &qh, &ql);
            va[j] = XOR3(qh, vb[j], ALL(s->for_a[r])); vb[j] = ql;
            vc[j] = XOR3(ph, vd[j], ALL(s->for_c[r])); vd[j] = pl;
        }
        UNROLL for (int j = 0; j < SCALARS; j++) GO_ON(r, a[j], b[j], c[j], d[j])
    }
    UNROLL for (int j = 0; j < VECTORS; j++) { /* four words of each counter behind each other */
        const __m512i p = _mm512_unpacklo_epi64(va[j], vb[j]), q = _mm512_unpacklo_epi64(vc[j], vd[j]);
        const __m512i v = _mm512_unpackhi_epi64(va[j], vb[j]), w = _mm512_unpackhi_epi64(vc[j], vd[j]);
        const __m512i even = MIX(p, q, 0x44), odd = MIX(v, w, 0x44), even4 = MIX(p, q, 0xee), odd4 = MIX(v, w, 0xee);
        _mm512_storeu_si512(u + 64 * j, MIX(even, odd, 0x88));
        _mm512_storeu_si512(u + 64 * j + 16, MIX(even, odd, 0xdd));
        _mm512_storeu_si512(u + 64 * j + 32, MIX(even4, odd4, 0x88));
        _mm512_storeu_si512(u + 64 * j + 48, MIX(even4, odd4, 0xdd));
    }
    UNROLL for (int j = 0; j < SCALARS; j++) {
        const uint64_t words[4] = {a[j], b[j], c[j], d[j]};
        memcpy(u + 64 * VECTORS + 8 * j, words, sizeof words);
    }
}
#endif
/* numbers [at, at + m) of a stream, 24 bits each; at is a multiple of 8, and u has room for m + 8 */
static void uniform(float *u, int64_t m, int64_t at, const uint64_t *key) {
    const rounds_t s = schedule(key);
    for (int64_t i = 0; i < m;) {
        const int64_t where = (at + i) %% %(segment)d, segment = (at + i) / %(segment)d;
#ifdef __AVX512F__
        if (i + AT_ONCE <= m && where + AT_ONCE <= %(segment)d) {
            at_once((uint64_t)where / 8 + 1, (uint64_t)segment, &s, u + i);
            i += AT_ONCE;
            continue;
        }
#endif
        eight((uint64_t)where / 8 + 1, (uint64_t)segment, &s, u + i);
        i += 8;
    }
    for (int64_t i = 0; i < m; i++) u[i] = (float)(int32_t)(as_bits(u[i]) >> 8) * 0x1p-24f;
}
"""


def philox(segment: int) -> str:
    """`uniform(u, m, at, key)`, where a stream has segments of so many numbers."""
    return _PHILOX % {"segment": segment}
