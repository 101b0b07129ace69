/* The two functions of runs.py, compiled: a run of MIDDLE packets out, a run of MIDDLE packets in.
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

#define INTERFACE 1 /* leaf.py asks for this one: a binary that is older than the checkout is not used */

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

static int seed_at(PyObject *seeds, Py_ssize_t place, uint32_t *seed) {
    PyObject *item = PyList_GetItem(seeds, place); /* borrowed; IndexError */
    if (!item)
        return -1;
    unsigned long value = PyLong_AsUnsignedLong(item);
    if (value == (unsigned long)-1 && PyErr_Occurred())
        return -1;
    *seed = (uint32_t)value;
    return 0;
}

static PyObject *build_run(PyObject *self, PyObject *const *arguments, Py_ssize_t given, PyObject *names) {
    (void)self;
    if (given != 6 || !names || PyTuple_Size(names) != 1 ||
        PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "ack_last")) {
        PyErr_SetString(PyExc_TypeError, "build_run(prefix, seeds, psn, data, mtu_bytes, count, *, ack_last)");
        return NULL;
    }
    PyObject *seeds = arguments[1], *wire = NULL, *buffers = NULL;
    uint32_t psn = (uint32_t)PyLong_AsUnsignedLongLongMask(arguments[2]) & PSN_MASK;
    Py_ssize_t mtu = PyLong_AsSsize_t(arguments[4]), count = PyLong_AsSsize_t(arguments[5]);
    int ack_last = PyObject_IsTrue(arguments[6]);
    if (PyErr_Occurred())
        return NULL;
    Py_ssize_t length = run_bytes(count, mtu);
    if (length < 0)
        return NULL;
    Py_buffer prefix, data;
    if (PyObject_GetBuffer(arguments[0], &prefix, PyBUF_SIMPLE))
        return NULL;
    if (PyObject_GetBuffer(arguments[3], &data, PyBUF_SIMPLE)) {
        PyBuffer_Release(&prefix);
        return NULL;
    }
    if (prefix.len != PREFIX_BYTES || data.len < length || !count || !PyList_Check(seeds) || PyList_Size(seeds) < count) {
        PyErr_SetString(PyExc_ValueError, bad_run);
        goto end;
    }
    wire = PyBytes_FromStringAndSize(NULL, length + count * OVERHEAD_BYTES);
    if (!wire)
        goto end;
    uint8_t *to = (uint8_t *)PyBytes_AsString(wire);
    const uint8_t *from = data.buf;
    for (Py_ssize_t index = 0; index < count; index++) {
        uint32_t crc;
        if (seed_at(seeds, index, &crc))
            goto end;
        memcpy(to, prefix.buf, PREFIX_BYTES);
        store_big32(to + PREFIX_BYTES, ack_last && index + 1 == count ? psn | ACK_REQUEST : psn);
        crc = crc_bytes(~crc, to + PREFIX_BYTES, HEADER_BYTES - PREFIX_BYTES);
        crc = crc_copy(crc, to + HEADER_BYTES, from, (size_t)mtu);
        store_little32(to + HEADER_BYTES + mtu, ~crc);
        to += mtu + OVERHEAD_BYTES, from += mtu;
        psn = (psn + 1) & PSN_MASK;
    }
    buffers = PyList_New(1);
    if (buffers) {
        PyList_SetItem(buffers, 0, wire); /* takes it over */
        wire = NULL;
    }
end:
    Py_XDECREF(wire);
    PyBuffer_Release(&data);
    PyBuffer_Release(&prefix);
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
    uint32_t psn = (uint32_t)PyLong_AsUnsignedLongLongMask(arguments[5]) & PSN_MASK;
    PyObject *seeds = arguments[6], *result = NULL;
    if (PyErr_Occurred())
        return NULL;
    Py_ssize_t length = run_bytes(count, mtu);
    if (length < 0)
        return NULL;
    Py_buffer view, target;
    if (PyObject_GetBuffer(arguments[0], &view, PyBUF_SIMPLE))
        return NULL;
    if (PyObject_GetBuffer(arguments[8], &target, PyBUF_WRITABLE)) {
        PyBuffer_Release(&view);
        return NULL;
    }
    if (position < 0 || position > view.len || length + count * OVERHEAD_BYTES > view.len - position || offset < 0 ||
        offset > target.len || length > target.len - offset ||
        (seeds != Py_None &&
         (!PyList_Check(seeds) || index < 0 || index > PyList_Size(seeds) || count > PyList_Size(seeds) - index))) {
        PyErr_SetString(PyExc_ValueError, bad_run);
        goto end;
    }
    const uint8_t *from = (const uint8_t *)view.buf + position;
    uint8_t *to = (uint8_t *)target.buf + offset;
    uint32_t high = (uint32_t)(prefix >> 32), low = (uint32_t)prefix & 0xFFFFFF, asked = 0;
    Py_ssize_t done = 0;
    for (; done < count; done++) {
        uint32_t word = load_big32(from + PREFIX_BYTES), crc;
        /* Byte 4 (FECN, BECN) may change on the way. */
        if ((word & ~ACK_REQUEST) != psn || load_big32(from) != high || (load_big32(from + 4) & 0xFFFFFF) != low)
            break;
        if (seeds != Py_None) {
            if (seed_at(seeds, index + done, &crc))
                goto end;
            crc = crc_bytes(~crc, from + PREFIX_BYTES, HEADER_BYTES - PREFIX_BYTES);
            crc = crc_copy(crc, NULL, from + HEADER_BYTES, (size_t)mtu);
            if (~crc != load_little32(from + HEADER_BYTES + mtu))
                break;
        }
        /* Not before the ICRC was right; the packet is in the first-level cache by now. */
        memcpy(to, from + HEADER_BYTES, (size_t)mtu);
        to += mtu, from += mtu + OVERHEAD_BYTES;
        psn = (psn + 1) & PSN_MASK;
        asked |= word;
    }
    PyObject *taken = PyLong_FromSsize_t(done);
    if (taken) {
        result = PyTuple_Pack(2, taken, asked & ACK_REQUEST ? Py_True : Py_False);
        Py_DECREF(taken);
    }
end:
    PyBuffer_Release(&target);
    PyBuffer_Release(&view);
    return result;
}

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
