/* The two functions of runs.py, compiled: a run of MIDDLE packets out, a run of MIDDLE packets in. And both together
 * with the socket's system call, for as long as nothing but such runs comes or goes.
 *
 * runs.py is the specification and the fallback: for arguments that make sense both give the same bytes and the same
 * decisions (tests/engine/roce/test_leaf.py). Arguments that do not, ValueError: every length is held against the
 * buffers that were passed, whatever the caller believes, because what stands in them was sent by a stranger.
 *
 * Only the limited API of Python 3.11 is used: one binary serves every later CPython.
 */
#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>
#include <stdint.h>
#include <string.h>
#ifdef __linux__
#include <errno.h>
#include <sys/socket.h>
#define HAS_SOCKET_RUNS 1
#endif

#define INTERFACE 7 /* leaf.py asks for this one: a binary that is older than the checkout is not used */

enum { PREFIX_BYTES = 8, HEADER_BYTES = 12, ICRC_BYTES = 4, OVERHEAD_BYTES = HEADER_BYTES + ICRC_BYTES };
#define PSN_MASK 0xFFFFFFu
#define ACK_REQUEST 0x80000000u
#define MOST 0x100000 /* bytes of a payload, packets of a run: beyond any UDP datagram, and no product overflows */

/* ---- CRC-32 (zlib's), and the same while copying ------------------------------------------------------------- */

#define POLYNOMIAL 0xEDB88320u

/* Both take and return the register before the final inversion. `to` may be NULL: nothing is copied. */
typedef uint32_t (*crc_copy_function)(uint32_t crc, uint8_t *to, const uint8_t *from, size_t length);

static uint32_t tables[8][256];

static void fill_tables(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
        tables[0][byte] = crc;
    }
    for (int table = 1; table < 8; table++)
        for (int byte = 0; byte < 256; byte++)
            tables[table][byte] = tables[table - 1][byte] >> 8 ^ tables[0][tables[table - 1][byte] & 0xFF];
}

static uint32_t crc_bytes(uint32_t crc, const uint8_t *from, size_t length) {
    while (length--)
        crc = crc >> 8 ^ tables[0][(crc ^ *from++) & 0xFF];
    return crc;
}

/* The same for 4 bytes at once, most significant first as `word` is sent. */
static inline uint32_t crc_big32(uint32_t crc, uint32_t word) {
    crc ^= word >> 24 | (word >> 8 & 0xFF00) | (word << 8 & 0xFF0000) | word << 24;
    return tables[3][crc & 0xFF] ^ tables[2][crc >> 8 & 0xFF] ^ tables[1][crc >> 16 & 0xFF] ^ tables[0][crc >> 24];
}

static inline uint32_t load_little32(const uint8_t *from) {
    return from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

static inline void store_little32(uint8_t *to, uint32_t value) {
    to[0] = (uint8_t)value, to[1] = (uint8_t)(value >> 8), to[2] = (uint8_t)(value >> 16), to[3] = (uint8_t)(value >> 24);
}

static inline uint32_t load_big32(const uint8_t *from) {
    return (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | from[3];
}

static inline void store_big32(uint8_t *to, uint32_t value) {
    to[0] = (uint8_t)(value >> 24), to[1] = (uint8_t)(value >> 16), to[2] = (uint8_t)(value >> 8), to[3] = (uint8_t)value;
}

static uint32_t crc_copy_tables(uint32_t crc, uint8_t *to, const uint8_t *from, size_t length) {
    if (to)
        memcpy(to, from, length);
    for (; length >= 8; length -= 8, from += 8) {
        uint32_t low = crc ^ load_little32(from), high = load_little32(from + 4);
        crc = tables[7][low & 0xFF] ^ tables[6][low >> 8 & 0xFF] ^ tables[5][low >> 16 & 0xFF] ^ tables[4][low >> 24] ^
              tables[3][high & 0xFF] ^ tables[2][high >> 8 & 0xFF] ^ tables[1][high >> 16 & 0xFF] ^ tables[0][high >> 24];
    }
    return crc_bytes(crc, from, length);
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAS_PCLMULQDQ 1

/* V. Gopal and others, "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel 2009: four
 * registers of 128 bits are folded over 64 bytes at a time, then into one, then reduced (Barrett). The constants are
 * x^n mod P, reflected. */
#define FOLD(x, by, next)                                                                                               \
    _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(x, by, 0x00), _mm_clmulepi64_si128(x, by, 0x11)), next)
#define LOAD(place) _mm_loadu_si128((const __m128i *)(place))
#define STORE(place, x) _mm_storeu_si128((__m128i *)(place), x)

#define BY(high, low) _mm_set_epi64x(high, low)

/* Folds what is left (fewer than 64 bytes) into `a`, the remainder of all before it, and reduces it to 32 bits. */
__attribute__((target("pclmul,sse4.1"))) static uint32_t
crc_copy_last(__m128i a, uint8_t *to, const uint8_t *from, size_t length) {
    const __m128i by128 = BY(0x0ccaa009e, 0x1751997d0), by64 = BY(0, 0x163cd6124), barrett = BY(0x1f7011641, 0x1db710641);
    const __m128i low32 = _mm_setr_epi32(~0, 0, ~0, 0);
    for (; length >= 16; length -= 16, from += 16) {
        __m128i e = LOAD(from);
        if (to) {
            STORE(to, e);
            to += 16;
        }
        a = FOLD(a, by128, e);
    }
    /* 128 bits to 64, to 32 */
    a = _mm_xor_si128(_mm_srli_si128(a, 8), _mm_clmulepi64_si128(a, by128, 0x10));
    a = _mm_xor_si128(_mm_srli_si128(a, 4), _mm_clmulepi64_si128(_mm_and_si128(a, low32), by64, 0x00));
    __m128i b = _mm_clmulepi64_si128(_mm_and_si128(a, low32), barrett, 0x10);
    b = _mm_clmulepi64_si128(_mm_and_si128(b, low32), barrett, 0x00);
    uint32_t crc = (uint32_t)_mm_extract_epi32(_mm_xor_si128(a, b), 1);
    return length ? crc_copy_tables(crc, to, from, length) : crc;
}

__attribute__((target("pclmul,sse4.1"))) static uint32_t
crc_copy_pclmulqdq(uint32_t crc, uint8_t *to, const uint8_t *from, size_t length) {
    if (length < 64)
        return crc_copy_tables(crc, to, from, length);
    const __m128i by512 = BY(0x1c6e41596, 0x154442bd4), by128 = BY(0x0ccaa009e, 0x1751997d0);
    __m128i a = LOAD(from), b = LOAD(from + 16), c = LOAD(from + 32), d = LOAD(from + 48);
    if (to) {
        STORE(to, a), STORE(to + 16, b), STORE(to + 32, c), STORE(to + 48, d);
        to += 64;
    }
    a = _mm_xor_si128(a, _mm_cvtsi32_si128((int)crc));
    from += 64, length -= 64;
    if (to) {
        for (; length >= 64; length -= 64, from += 64, to += 64) {
            __m128i e = LOAD(from), f = LOAD(from + 16), g = LOAD(from + 32), h = LOAD(from + 48);
            STORE(to, e), STORE(to + 16, f), STORE(to + 32, g), STORE(to + 48, h);
            a = FOLD(a, by512, e), b = FOLD(b, by512, f), c = FOLD(c, by512, g), d = FOLD(d, by512, h);
        }
    } else {
        for (; length >= 64; length -= 64, from += 64) {
            a = FOLD(a, by512, LOAD(from)), b = FOLD(b, by512, LOAD(from + 16));
            c = FOLD(c, by512, LOAD(from + 32)), d = FOLD(d, by512, LOAD(from + 48));
        }
    }
    a = FOLD(a, by128, b), a = FOLD(a, by128, c), a = FOLD(a, by128, d);
    return crc_copy_last(a, to, from, length);
}

#define LINE_BYTES 64
#define WAIT_FOR_STORES() _mm_sfence()

/* As memcpy, past the caches; `to` begins a line. A store that fills a line of its own accord need not read it first,
 * which is what memory is slowest at. */
static void copy_past_caches(uint8_t *to, const uint8_t *from, size_t length) {
    for (; length >= LINE_BYTES; length -= LINE_BYTES, from += LINE_BYTES, to += LINE_BYTES) {
        __m128i a = LOAD(from), b = LOAD(from + 16), c = LOAD(from + 32), d = LOAD(from + 48);
        _mm_stream_si128((__m128i *)to, a), _mm_stream_si128((__m128i *)(to + 16), b);
        _mm_stream_si128((__m128i *)(to + 32), c), _mm_stream_si128((__m128i *)(to + 48), d);
    }
    memcpy(to, from, length);
}

#if __GNUC__ >= 9 || (defined(__clang_major__) && __clang_major__ >= 8)
#define HAS_VPCLMULQDQ 1
#define WIDE_FOLD(x, by, next)                                                                                          \
    _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(x, by, 0x00), _mm512_clmulepi64_epi128(x, by, 0x11), next, 0x96)
#define WIDE_LOAD(place) _mm512_loadu_si512(place)
#define WIDE_STORE(place, x) _mm512_storeu_si512(place, x)
#define LANE(x, place) _mm512_extracti32x4_epi32(x, place)

/* The same, four times as wide. */
__attribute__((target("vpclmulqdq,avx512f,pclmul,sse4.1"))) static uint32_t
crc_copy_vpclmulqdq(uint32_t crc, uint8_t *to, const uint8_t *from, size_t length) {
    if (length < 256)
        return crc_copy_pclmulqdq(crc, to, from, length);
    const __m512i by2048 = _mm512_broadcast_i32x4(BY(0x1322d1430, 0x11542778a));
    const __m512i by512 = _mm512_broadcast_i32x4(BY(0x1c6e41596, 0x154442bd4));
    const __m128i by128 = BY(0x0ccaa009e, 0x1751997d0);
    __m512i a = WIDE_LOAD(from), b = WIDE_LOAD(from + 64), c = WIDE_LOAD(from + 128), d = WIDE_LOAD(from + 192);
    if (to) {
        WIDE_STORE(to, a), WIDE_STORE(to + 64, b), WIDE_STORE(to + 128, c), WIDE_STORE(to + 192, d);
        to += 256;
    }
    a = _mm512_xor_si512(a, _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    from += 256, length -= 256;
    if (to) {
        for (; length >= 256; length -= 256, from += 256, to += 256) {
            __m512i e = WIDE_LOAD(from), f = WIDE_LOAD(from + 64), g = WIDE_LOAD(from + 128), h = WIDE_LOAD(from + 192);
            WIDE_STORE(to, e), WIDE_STORE(to + 64, f), WIDE_STORE(to + 128, g), WIDE_STORE(to + 192, h);
            a = WIDE_FOLD(a, by2048, e), b = WIDE_FOLD(b, by2048, f);
            c = WIDE_FOLD(c, by2048, g), d = WIDE_FOLD(d, by2048, h);
        }
    } else {
        for (; length >= 256; length -= 256, from += 256) {
            a = WIDE_FOLD(a, by2048, WIDE_LOAD(from)), b = WIDE_FOLD(b, by2048, WIDE_LOAD(from + 64));
            c = WIDE_FOLD(c, by2048, WIDE_LOAD(from + 128)), d = WIDE_FOLD(d, by2048, WIDE_LOAD(from + 192));
        }
    }
    a = WIDE_FOLD(a, by512, b), a = WIDE_FOLD(a, by512, c), a = WIDE_FOLD(a, by512, d);
    for (; length >= 64; length -= 64, from += 64) {
        __m512i e = WIDE_LOAD(from);
        if (to) {
            WIDE_STORE(to, e);
            to += 64;
        }
        a = WIDE_FOLD(a, by512, e);
    }
    __m128i last = FOLD(LANE(a, 0), by128, LANE(a, 1));
    last = FOLD(last, by128, LANE(a, 2)), last = FOLD(last, by128, LANE(a, 3));
    return crc_copy_last(last, to, from, length);
}
#endif
#endif

#if defined(__aarch64__) && defined(__linux__) && defined(__GNUC__)
#include <sys/auxv.h>
#define HAS_ARM_CRC32 1
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7) /* arch/arm64/include/uapi/asm/hwcap.h */
#endif

static uint32_t crc_copy_arm(uint32_t crc, uint8_t *to, const uint8_t *from, size_t length) {
    for (; length >= 8; length -= 8, from += 8) {
        uint64_t word;
        memcpy(&word, from, 8);
        if (to) {
            memcpy(to, &word, 8);
            to += 8;
        }
        __asm__(".arch_extension crc\n\tcrc32x %w0, %w0, %x1" : "+r"(crc) : "r"(word));
    }
    return length ? crc_copy_tables(crc, to, from, length) : crc;
}
#endif

#ifndef LINE_BYTES
#define LINE_BYTES 0 /* no such stores here */
#define WAIT_FOR_STORES() ((void)0)
#define copy_past_caches memcpy
#endif

static crc_copy_function crc_copy = crc_copy_tables;
static const char *const engine_names[] = {"vpclmulqdq", "pclmulqdq", "arm-crc32", "slice-by-8", NULL}; /* fastest first */

static crc_copy_function find_engine(const char *name) {
#ifdef HAS_VPCLMULQDQ
    if (!strcmp(name, "vpclmulqdq") && __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx512f"))
        return crc_copy_vpclmulqdq;
#endif
#ifdef HAS_PCLMULQDQ
    if (!strcmp(name, "pclmulqdq") && __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1"))
        return crc_copy_pclmulqdq;
#endif
#ifdef HAS_ARM_CRC32
    if (!strcmp(name, "arm-crc32") && getauxval(AT_HWCAP) & HWCAP_CRC32)
        return crc_copy_arm;
#endif
    return strcmp(name, "slice-by-8") ? NULL : crc_copy_tables;
}

/* ---- runs ----------------------------------------------------------------------------------------------------- */

static const char *const bad_run = "a run of packets that do not fit their buffers";

/* Return how many bytes `count` packets of `each` bytes take, -1 with ValueError where either is out of bounds. */
static Py_ssize_t run_bytes(Py_ssize_t count, Py_ssize_t each) {
    if (count < 0 || count > MOST || each <= 0 || each > MOST ||
        (uint64_t)count * (uint64_t)(each + OVERHEAD_BYTES) > (uint64_t)PY_SSIZE_T_MAX) {
        PyErr_SetString(PyExc_ValueError, bad_run);
        return -1;
    }
    return count * each;
}

/* Seeds of a run: on the stack as long as it is a burst that a datagram can hold. `all` is NULL where there are none. */
typedef struct {
    uint32_t few[256], *all;
} seed_list;

static void free_seeds(seed_list *seeds) {
    if (seeds->all != seeds->few)
        PyMem_Free(seeds->all);
}

/* Fill `seeds` with `count` of `list` from `index` on; None has none. False with ValueError (too few), TypeError,
 * MemoryError. */
static int read_seeds(seed_list *seeds, PyObject *list, Py_ssize_t index, Py_ssize_t count) {
    seeds->all = list == Py_None ? NULL : seeds->few;
    if (list == Py_None)
        return 1;
    if (!PyList_Check(list) || index < 0 || index > PyList_Size(list) || count > PyList_Size(list) - index) {
        PyErr_SetString(PyExc_ValueError, bad_run);
        return 0;
    }
    if (count > (Py_ssize_t)(sizeof seeds->few / sizeof *seeds->few)) {
        seeds->all = PyMem_Malloc((size_t)count * sizeof *seeds->all);
        if (!seeds->all) {
            PyErr_NoMemory();
            return 0;
        }
    }
    for (Py_ssize_t place = 0; place < count; place++) {
        PyObject *item = PyList_GetItem(list, index + place); /* borrowed */
        unsigned long value = item ? PyLong_AsUnsignedLong(item) : 0;
        if (PyErr_Occurred()) {
            free_seeds(seeds);
            return 0;
        }
        seeds->all[place] = (uint32_t)value;
    }
    return 1;
}

/* The buffers of one call, held and let go together. */
enum { MOST_BUFFERS = 6 };
typedef struct {
    Py_buffer at[MOST_BUFFERS];
    int count;
} buffer_list;

static void release(buffer_list *held) {
    while (held->count)
        PyBuffer_Release(&held->at[--held->count]);
}

/* Hold one more, as the next of `held`. False with BufferError or TypeError, and none is held any more. */
static int hold(buffer_list *held, PyObject *object, int flags) {
    if (PyObject_GetBuffer(object, &held->at[held->count], flags)) {
        release(held);
        return 0;
    }
    held->count++;
    return 1;
}

/* Write `count` packets to `to`, which has room for them. `end`: of all data there is, these packets' or more. */
static void make_packets(uint8_t *to, const uint8_t *prefix, const uint32_t *seeds, uint32_t psn, const uint8_t *from,
                         const uint8_t *end, Py_ssize_t mtu, Py_ssize_t count, int ack_last) {
    for (Py_ssize_t index = 0; index < count; index++) {
        psn &= PSN_MASK;
        uint32_t word = ack_last && index + 1 == count ? psn | ACK_REQUEST : psn;
        memcpy(to, prefix, PREFIX_BYTES);
        store_big32(to + PREFIX_BYTES, word);
        uint32_t crc = crc_big32(~seeds[index], word);
#ifdef __GNUC__
        /* Where the next page begins, nothing foresees that it is needed; the rest of it then is. */
        const uint8_t *next = from + mtu, *enough = end - next < mtu / 8 ? end : next + mtu / 8;
        for (; next < enough; next += 64)
            __builtin_prefetch(next);
#endif
        crc = crc_copy(crc, to + HEADER_BYTES, from, (size_t)mtu);
        store_little32(to + HEADER_BYTES + mtu, ~crc);
        to += mtu + OVERHEAD_BYTES, from += mtu;
        psn++;
    }
}

/* Whether a BTH has these first 8 bytes, but for byte 4 (FECN, BECN), which may change on the way, and this PSN. */
static inline int is_expected(const uint8_t *from, uint64_t prefix, uint32_t psn) {
    return (load_big32(from + PREFIX_BYTES) & ~ACK_REQUEST) == (psn & PSN_MASK) &&
           load_big32(from) == (uint32_t)(prefix >> 32) && !((load_big32(from + 4) ^ (uint32_t)prefix) & 0xFFFFFF);
}

/* Copy up to `count` packets at `from` to `to` while they are what is expected (`seeds` NULL: the ICRC is not looked
 * at); return how many were. `asked` gathers their ACK request bits. */
static Py_ssize_t take_packets(const uint8_t *from, Py_ssize_t count, Py_ssize_t mtu, uint64_t prefix, uint32_t psn,
                               const uint32_t *seeds, uint8_t *to, uint32_t *asked) {
    Py_ssize_t done = 0;
    /* Every packet of the run begins a line then. */
    const int past_caches = LINE_BYTES && !((uintptr_t)to & (LINE_BYTES - 1)) && !(mtu & (LINE_BYTES - 1));
    for (; done < count; done++) {
        uint32_t word = load_big32(from + PREFIX_BYTES), crc;
        if (!is_expected(from, prefix, psn))
            break;
        if (seeds) {
#ifdef __GNUC__
            /* Memory that no cache holds is waited for while the ICRC is computed, not after it. */
            for (Py_ssize_t place = 0; place < mtu && !past_caches; place += 64)
                __builtin_prefetch(to + place, 1);
#endif
            crc = crc_big32(~seeds[done], word);
            crc = crc_copy(crc, NULL, from + HEADER_BYTES, (size_t)mtu);
            if (~crc != load_little32(from + HEADER_BYTES + mtu))
                break;
        }
        /* Not before the ICRC was right; the packet is in the first-level cache by now. */
        if (past_caches)
            copy_past_caches(to, from + HEADER_BYTES, (size_t)mtu);
        else
            memcpy(to, from + HEADER_BYTES, (size_t)mtu);
        to += mtu, from += mtu + OVERHEAD_BYTES;
        psn++;
        *asked |= word & ACK_REQUEST;
    }
    /* Whoever watches the end of a message from another processor sees all of it before its last packet. */
    if (past_caches)
        WAIT_FOR_STORES();
    return done;
}

/* As take_packets for one packet that came alone, `length` bytes, with `extension` bytes of headers after its BTH. */
static int take_alone(const uint8_t *from, Py_ssize_t length, Py_ssize_t extension, Py_ssize_t mtu, uint64_t prefix,
                      uint32_t psn, const uint32_t *seed, uint8_t *to, uint32_t *asked) {
    if (length != mtu + OVERHEAD_BYTES + extension)
        return 0;
    const uint8_t *data = from + HEADER_BYTES + extension;
    uint32_t word = load_big32(from + PREFIX_BYTES);
    /* The syndrome of an AETH: a READ response is never a NAK. */
    if (!is_expected(from, prefix, psn) || (extension && from[HEADER_BYTES] >> 5))
        return 0;
    if (seed) {
        uint32_t crc = crc_copy_tables(crc_big32(~*seed, word), NULL, from + HEADER_BYTES, (size_t)extension);
        if (~crc_copy(crc, NULL, data, (size_t)mtu) != load_little32(data + mtu))
            return 0;
    }
    memcpy(to, data, (size_t)mtu);
    *asked |= word & ACK_REQUEST;
    return 1;
}

static PyObject *build_run(PyObject *self, PyObject *const *arguments, Py_ssize_t given, PyObject *names) {
    (void)self;
    if (given != 6 || !names || PyTuple_Size(names) != 1 ||
        PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "ack_last")) {
        PyErr_SetString(PyExc_TypeError, "build_run(prefix, seeds, psn, data, mtu_bytes, count, *, ack_last)");
        return NULL;
    }
    PyObject *wire = NULL, *buffers = NULL;
    uint32_t psn = (uint32_t)PyLong_AsUnsignedLongLongMask(arguments[2]);
    Py_ssize_t mtu = PyLong_AsSsize_t(arguments[4]), count = PyLong_AsSsize_t(arguments[5]);
    int ack_last = PyObject_IsTrue(arguments[6]);
    if (PyErr_Occurred())
        return NULL;
    Py_ssize_t length = run_bytes(count, mtu);
    if (length < 0)
        return NULL;
    buffer_list held = {.count = 0};
    if (!hold(&held, arguments[0], PyBUF_SIMPLE) || !hold(&held, arguments[3], PyBUF_SIMPLE))
        return NULL;
    const Py_buffer *prefix = &held.at[0], *data = &held.at[1];
    seed_list seeds;
    if (prefix->len != PREFIX_BYTES || data->len < length || !count || !PyList_Check(arguments[1])) {
        PyErr_SetString(PyExc_ValueError, bad_run);
    } else if (read_seeds(&seeds, arguments[1], 0, count)) {
        wire = PyBytes_FromStringAndSize(NULL, length + count * OVERHEAD_BYTES);
        if (wire) {
            uint8_t *to = (uint8_t *)PyBytes_AsString(wire);
            const uint8_t *from = data->buf;
            make_packets(to, prefix->buf, seeds.all, psn, from, from + length, mtu, count, ack_last);
            buffers = PyList_New(1);
        }
        free_seeds(&seeds);
        if (buffers)
            PyList_SetItem(buffers, 0, wire); /* takes it over */
        else
            Py_XDECREF(wire);
    }
    release(&held);
    return buffers;
}

static PyObject *receive_run(PyObject *self, PyObject *const *arguments, Py_ssize_t given) {
    (void)self;
    if (given != 10) {
        PyErr_SetString(
            PyExc_TypeError, "receive_run(view, position, count, mtu_bytes, prefix, psn, seeds, index, target, offset)");
        return NULL;
    }
    Py_ssize_t position = PyLong_AsSsize_t(arguments[1]), count = PyLong_AsSsize_t(arguments[2]);
    Py_ssize_t mtu = PyLong_AsSsize_t(arguments[3]), index = PyLong_AsSsize_t(arguments[7]);
    Py_ssize_t offset = PyLong_AsSsize_t(arguments[9]);
    uint64_t prefix = PyLong_AsUnsignedLongLong(arguments[4]);
    uint32_t psn = (uint32_t)PyLong_AsUnsignedLongLongMask(arguments[5]), asked = 0;
    PyObject *result = NULL;
    if (PyErr_Occurred())
        return NULL;
    Py_ssize_t length = run_bytes(count, mtu);
    if (length < 0)
        return NULL;
    buffer_list held = {.count = 0};
    if (!hold(&held, arguments[0], PyBUF_SIMPLE) || !hold(&held, arguments[8], PyBUF_WRITABLE))
        return NULL;
    const Py_buffer *view = &held.at[0], *target = &held.at[1];
    seed_list seeds;
    if (position < 0 || position > view->len || length + count * OVERHEAD_BYTES > view->len - position || offset < 0 ||
        offset > target->len || length > target->len - offset) {
        PyErr_SetString(PyExc_ValueError, bad_run);
    } else if (read_seeds(&seeds, arguments[6], index, count)) {
        const uint8_t *from = (const uint8_t *)view->buf + position;
        uint8_t *to = (uint8_t *)target->buf + offset;
        Py_ssize_t done = take_packets(from, count, mtu, prefix, psn, seeds.all, to, &asked);
        free_seeds(&seeds);
        result = Py_BuildValue("nO", done, asked ? Py_True : Py_False);
    }
    release(&held);
    return result;
}

/* ---- runs to and from a UDP socket ---------------------------------------------------------------------------- */

#ifdef HAS_SOCKET_RUNS
/* include/uapi/linux/udp.h */
enum { SOL_UDP_ = 17, UDP_SEGMENT_ = 103, UDP_GRO_ = 104 };
enum { MOST_DATAGRAM_BYTES = 65535, MOST_BURSTS = 64 };

typedef union {
    char bytes[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
} control_space;

/* A number that is no descriptor is -1, which the kernel refuses. */
static int descriptor(PyObject *number) {
    long fileno = PyLong_AsLong(number);
    return fileno == (int)fileno ? (int)fileno : -1;
}

/* Both give the interpreter to nobody while they run: a call is short, and to get it back may take milliseconds. */

/* Send `length` bytes of `wire`, in datagrams of `segment` bytes if it is more than one; return errno or 0. */
static int send_one(int fileno, const Py_buffer *address, uint8_t *wire, Py_ssize_t length, uint16_t segment) {
    control_space control = {{0}};
    struct iovec piece = {wire, (size_t)length};
    struct msghdr message = {
        .msg_name = address->buf, .msg_namelen = (socklen_t)address->len, .msg_iov = &piece, .msg_iovlen = 1,
    };
    if (length > segment) {
        message.msg_control = &control, message.msg_controllen = CMSG_SPACE(sizeof segment);
        struct cmsghdr *told = CMSG_FIRSTHDR(&message);
        told->cmsg_level = SOL_UDP_, told->cmsg_type = UDP_SEGMENT_, told->cmsg_len = CMSG_LEN(sizeof segment);
        memcpy(CMSG_DATA(told), &segment, sizeof segment);
    }
    return sendmsg(fileno, &message, MSG_DONTWAIT) < 0 ? errno : 0;
}

/* Make a packet with headers of its own at `wire`; return its length. `head`: BTH and extension headers. */
static Py_ssize_t make_alone(uint8_t *wire, const Py_buffer *head, uint32_t seed, const uint8_t *from, Py_ssize_t mtu) {
    memcpy(wire, head->buf, (size_t)head->len);
    uint32_t crc = crc_copy_tables(~seed, NULL, wire + PREFIX_BYTES, (size_t)(head->len - PREFIX_BYTES));
    crc = crc_copy(crc, wire + head->len, from, (size_t)mtu);
    store_little32(wire + head->len + mtu, ~crc);
    return head->len + mtu + ICRC_BYTES;
}

static PyObject *send_runs(PyObject *self, PyObject *const *arguments, Py_ssize_t given) {
    (void)self;
    if (given != 16) {
        PyErr_SetString(PyExc_TypeError, "send_runs(fileno, address, prefix, seeds, psn, data, mtu_bytes, count, bursts, "
                                         "asks, last_prefix, last_seed, first_head, first_seed, tail_head, tail_seed)");
        return NULL;
    }
    int fileno = descriptor(arguments[0]);
    uint32_t psn = (uint32_t)PyLong_AsUnsignedLongLongMask(arguments[4]);
    Py_ssize_t mtu = PyLong_AsSsize_t(arguments[6]), count = PyLong_AsSsize_t(arguments[7]);
    Py_ssize_t bursts = PyLong_AsSsize_t(arguments[8]), sent = 0;
    uint64_t asks = PyLong_AsUnsignedLongLong(arguments[9]);
    int ends = arguments[10] != Py_None, starts = arguments[12] != Py_None, trails = arguments[14] != Py_None;
    uint32_t last_seed = (uint32_t)PyLong_AsUnsignedLong(arguments[11]);
    uint32_t first_seed = (uint32_t)PyLong_AsUnsignedLong(arguments[13]);
    uint32_t tail_seed = (uint32_t)PyLong_AsUnsignedLong(arguments[15]);
    if (PyErr_Occurred())
        return NULL;
    Py_ssize_t length = run_bytes(count, mtu);
    if (length < 0)
        return NULL;
    Py_ssize_t each = length + count * OVERHEAD_BYTES;
    buffer_list held = {.count = 0};
    if (!hold(&held, arguments[1], PyBUF_SIMPLE) || !hold(&held, arguments[2], PyBUF_SIMPLE) ||
        !hold(&held, arguments[5], PyBUF_SIMPLE) || !hold(&held, arguments[ends ? 10 : 2], PyBUF_SIMPLE) ||
        !hold(&held, arguments[starts ? 12 : 2], PyBUF_SIMPLE) || !hold(&held, arguments[trails ? 14 : 2], PyBUF_SIMPLE))
        return NULL;
    const Py_buffer *address = &held.at[0], *prefix = &held.at[1], *data = &held.at[2];
    const Py_buffer *last = &held.at[3], *first = &held.at[4], *tail = &held.at[5];
    PyObject *result = NULL;
    seed_list seeds;
    Py_ssize_t packets = data->len / mtu - starts - trails;
    if (prefix->len != PREFIX_BYTES || last->len != PREFIX_BYTES || count < 2 || each > MOST_DATAGRAM_BYTES ||
        bursts < !starts || bursts > MOST_BURSTS || (!bursts && trails && first->len != tail->len) ||
        data->len % mtu || packets < 0 || packets <= (bursts - 1) * count || packets > bursts * count ||
        (starts && (first->len < HEADER_BYTES || first->len + mtu + ICRC_BYTES > each)) ||
        (trails && (tail->len < HEADER_BYTES || tail->len + mtu + ICRC_BYTES > each)) ||
        address->len > (Py_ssize_t)sizeof(struct sockaddr_storage) || !PyList_Check(arguments[3])) {
        PyErr_SetString(PyExc_ValueError, bad_run);
    } else if (read_seeds(&seeds, arguments[3], 0, count)) {
        /* A FIRST with nothing but its LAST is followed by it in one burst. */
        Py_ssize_t ahead = bursts || !trails ? 0 : first->len + mtu + ICRC_BYTES;
        uint8_t *wire = PyMem_Malloc((size_t)(each > 2 * ahead ? each : 2 * ahead));
        if (!wire) {
            PyErr_NoMemory();
        } else {
            uint16_t segment = (uint16_t)(mtu + OVERHEAD_BYTES);
            const uint8_t *from = data->buf, *end = from + data->len;
            int failed = 0;
            if (starts) {
                Py_ssize_t made = make_alone(wire, first, first_seed, from, mtu);
                if (!ahead) {
                    failed = send_one(fileno, address, wire, made, (uint16_t)made);
                    sent += !failed;
                }
                from += mtu;
            }
            for (Py_ssize_t burst = 0; burst < bursts && !failed; burst++) {
                /* The last burst may be shorter. */
                Py_ssize_t here = packets < count ? packets : count, middles = here - (ends && here == packets);
                int ask = asks >> burst & 1;
                make_packets(wire, prefix->buf, seeds.all, psn, from, end, mtu, middles, middles == here && ask);
                if (middles < here)
                    make_packets(wire + middles * segment, last->buf, &last_seed, psn + (uint32_t)middles,
                                 from + middles * mtu, end, mtu, 1, ask);
                failed = send_one(fileno, address, wire, here * segment, segment);
                sent += !failed;
                from += here * mtu;
                psn += (uint32_t)here, packets -= here;
            }
            if (trails && !failed) {
                Py_ssize_t made = ahead + make_alone(wire + ahead, tail, tail_seed, from, mtu);
                failed = send_one(fileno, address, wire, made, (uint16_t)(made - ahead));
                sent += !failed;
            }
            PyMem_Free(wire);
            result = Py_BuildValue("ni", sent, failed);
        }
        free_seeds(&seeds);
    }
    release(&held);
    return result;
}

/* Receive one datagram or burst into `buffer`; return its length, -1 with errno. `segment`: its packets' length. */
static Py_ssize_t receive_one(int fileno, const Py_buffer *buffer, struct sockaddr_storage *source, socklen_t *source_length,
                              Py_ssize_t *segment) {
    control_space control;
    struct iovec piece = {buffer->buf, (size_t)buffer->len};
    struct msghdr message = {
        .msg_name = source, .msg_namelen = sizeof *source, .msg_iov = &piece, .msg_iovlen = 1,
        .msg_control = &control, .msg_controllen = sizeof control,
    };
    Py_ssize_t length = recvmsg(fileno, &message, MSG_DONTWAIT);
    if (length < 0)
        return -1;
    *source_length = message.msg_namelen;
    *segment = length;
    struct cmsghdr *told = CMSG_FIRSTHDR(&message);
    if (told && told->cmsg_level == SOL_UDP_ && told->cmsg_type == UDP_GRO_ && told->cmsg_len >= CMSG_LEN(sizeof(int))) {
        int size;
        memcpy(&size, CMSG_DATA(told), sizeof size);
        if (size > 0 && size < length)
            *segment = size;
    }
    return length;
}

/* Fill `seeds` with the first of `list`, at most as many as a stack holds; return how many packets of a burst have one.
 * -1 as read_seeds. */
static Py_ssize_t read_known_seeds(seed_list *seeds, PyObject *list) {
    Py_ssize_t known = MOST_DATAGRAM_BYTES;
    if (PyList_Check(list))
        known = PyList_Size(list) < 256 ? PyList_Size(list) : 256;
    return read_seeds(seeds, list, 0, known) ? known : -1;
}

static PyObject *receive_runs(PyObject *self, PyObject *const *arguments, Py_ssize_t given) {
    (void)self;
    if (given != 16) {
        PyErr_SetString(PyExc_TypeError, "receive_runs(fileno, buffer, address, mtu_bytes, prefix, psn, seeds, target, "
                                         "offset, count, last_prefix, last_seeds, first_prefix, first_seeds, extension, "
                                         "bursts)");
        return NULL;
    }
    int fileno = descriptor(arguments[0]), ends = arguments[10] != Py_None, ended = 0;
    int starts = arguments[12] != Py_None, started = 0;
    Py_ssize_t mtu = PyLong_AsSsize_t(arguments[3]), offset = PyLong_AsSsize_t(arguments[8]);
    Py_ssize_t count = PyLong_AsSsize_t(arguments[9]), bursts = PyLong_AsSsize_t(arguments[15]);
    Py_ssize_t extension = PyLong_AsSsize_t(arguments[14]);
    uint64_t prefix = PyLong_AsUnsignedLongLong(arguments[4]);
    uint64_t last_prefix = ends ? PyLong_AsUnsignedLongLong(arguments[10]) : 0;
    uint64_t first_prefix = starts ? PyLong_AsUnsignedLongLong(arguments[12]) : 0;
    uint32_t psn = (uint32_t)PyLong_AsUnsignedLongLongMask(arguments[5]), asked = 0;
    if (PyErr_Occurred())
        return NULL;
    Py_ssize_t length = run_bytes(count, mtu);
    if (length < 0)
        return NULL;
    length += (starts + ends) * mtu;
    buffer_list held = {.count = 0};
    if (!hold(&held, arguments[1], PyBUF_WRITABLE) || !hold(&held, arguments[2], PyBUF_SIMPLE) ||
        !hold(&held, arguments[7], PyBUF_WRITABLE))
        return NULL;
    const Py_buffer *buffer = &held.at[0], *address = &held.at[1], *target = &held.at[2];
    PyObject *result = NULL;
    seed_list seeds, last_seeds, first_seeds;
    Py_ssize_t known, last_known, first_known;
    if (offset < 0 || offset > target->len || length > target->len - offset || extension < 0 || extension > 64) {
        PyErr_SetString(PyExc_ValueError, bad_run);
    } else if ((known = read_known_seeds(&seeds, arguments[6])) >= 0 &&
               (last_known = read_known_seeds(&last_seeds, arguments[11])) >= 0 &&
               (first_known = read_known_seeds(&first_seeds, arguments[13])) >= 0) {
        struct sockaddr_storage source;
        socklen_t source_length = 0;
        Py_ssize_t taken = 0, received = 0, here = 0, segment = 0, done = 0;
        uint8_t *to = (uint8_t *)target->buf + offset;
        int failed = 0, is_over = 0;
        /* After a LAST of this kind comes what somebody else must look at; after one that is alone, perhaps not. */
        int goes_on = ends && !extension;
        while (!is_over && received < bursts && (started < starts || taken < count || ended < ends || goes_on)) {
            here = receive_one(fileno, buffer, &source, &source_length, &segment);
            if (here < 0) {
                failed = errno;
                break;
            }
            received++;
            done = 0;
            if ((Py_ssize_t)source_length != address->len || memcmp(&source, address->buf, source_length)) {
                /* a stranger's */
            } else if (started < starts) {
                if (first_known && segment == here)
                    done = started = take_alone(buffer->buf, here, extension, mtu, first_prefix, psn, first_seeds.all, to,
                                                &asked);
                psn += (uint32_t)done, to += done * mtu;
            } else if (segment == mtu + OVERHEAD_BYTES) {
                Py_ssize_t there = here / segment, most = there < count - taken ? there : count - taken;
                most = most < known ? most : known;
                done = take_packets(buffer->buf, most, mtu, prefix, psn, seeds.all, to, &asked);
                taken += done, psn += (uint32_t)done, to += done * mtu;
                if (goes_on && !ended && taken == count && done < there && done < last_known) {
                    const uint32_t *seed = last_seeds.all ? last_seeds.all + done : NULL;
                    const uint8_t *from = (const uint8_t *)buffer->buf + done * segment;
                    ended = (int)take_packets(from, 1, mtu, last_prefix, psn, seed, to, &asked);
                    done += ended;
                }
            } else if (extension && ended < ends && taken == count && last_known && segment == here) {
                done = ended = take_alone(buffer->buf, here, extension, mtu, last_prefix, psn, last_seeds.all, to, &asked);
            }
            is_over = done * segment != here;
        }
        free_seeds(&seeds);
        free_seeds(&last_seeds);
        free_seeds(&first_seeds);
        /* What is left in the buffer: length, position and place of the packet that was not taken, and whose it is. */
        taken += started + ended;
        PyObject *has_asked = asked ? Py_True : Py_False, *has_ended = ended ? Py_True : Py_False;
        result = is_over ? Py_BuildValue("nnOOi(nnnny#)", taken, received, has_asked, has_ended, failed, here,
                                         done * segment, done, segment, (char *)&source, (Py_ssize_t)source_length)
                         : Py_BuildValue("nnOOiO", taken, received, has_asked, has_ended, failed, Py_None);
    }
    release(&held);
    return result;
}
#endif

static PyObject *engines(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    PyObject *found = PyList_New(0);
    for (size_t i = 0; found && engine_names[i]; i++) {
        PyObject *name = find_engine(engine_names[i]) ? PyUnicode_FromString(engine_names[i]) : NULL;
        if (name && PyList_Append(found, name))
            Py_CLEAR(found);
        Py_XDECREF(name);
        if (PyErr_Occurred())
            Py_CLEAR(found);
    }
    return found;
}

static PyObject *use_engine(PyObject *self, PyObject *argument) {
    (void)self;
    for (size_t i = 0; engine_names[i]; i++) {
        crc_copy_function function = find_engine(engine_names[i]);
        if (function && PyUnicode_Check(argument) && !PyUnicode_CompareWithASCIIString(argument, engine_names[i])) {
            crc_copy = function;
            Py_RETURN_NONE;
        }
    }
    return PyErr_Format(PyExc_LookupError, "%R is not to be had here", argument);
}

#define CAST(function) (PyCFunction)(void (*)(void)) function

static PyMethodDef functions[] = {
    {"build_run", CAST(build_run), METH_FASTCALL | METH_KEYWORDS, "As runs.build_run, in one piece of memory."},
    {"receive_run", CAST(receive_run), METH_FASTCALL, "As runs.receive_run."},
#ifdef HAS_SOCKET_RUNS
    {"send_runs", CAST(send_runs), METH_FASTCALL, "Build runs and send each; return (how many, errno or 0)."},
    {"receive_runs", CAST(receive_runs), METH_FASTCALL,
     "Receive and take runs; return (packets, bursts, asked, ended, errno or 0, what was not taken or None)."},
#endif
    {"engines", engines, METH_NOARGS, "Ways of computing a CRC-32 on this processor; the first is used."},
    {"use_engine", use_engine, METH_O, "Use another one of them; for tests."},
    {NULL, NULL, 0, NULL},
};

static int set_up(PyObject *module) {
    fill_tables();
    for (size_t i = 0; engine_names[i]; i++)
        if ((crc_copy = find_engine(engine_names[i])))
            break;
    return PyModule_AddIntConstant(module, "INTERFACE", INTERFACE);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)set_up}, {0, NULL}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_leaf", .m_methods = functions, .m_slots = slots,
};

PyMODINIT_FUNC PyInit__leaf(void) { return PyModuleDef_Init(&definition); }
