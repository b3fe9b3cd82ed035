# pragma version 0.4.3
# pragma optimize gas
# pragma evm-version cancun
"""
@title Ed25519 over a 47-byte message
@license Apache-2.0
@notice Decides as libsodium does: S below the group order, canonical encodings, no cofactor, no point of small order
        as key or as R. Unaudited: test networks only.
@dev The equation is encode([S]B - [k]A) == R, so R is compared as bytes and never decompressed, and nobody supplies a
     hint. Both scalars are cut in half: [s0]B + [s1]B' + [k0](-A) + [k1](-A)', where P' = [2^128]P. B' is a constant;
     (-A)' is computed once, when the key is registered. That halves the doublings: 128 steps of one doubling and one
     addition from a table of the 16 sums of B, B', -A and (-A)'.
     Points are (X, Y, Z, T) with x = X/Z, y = Y/Z, T = XY/Z on -x^2 + y^2 = 1 + d x^2 y^2 (Hisil et al., 2008).
     Values under `mulmod` need not be below P but must fit 256 bits: with a, b < P both a + b and a + P - b do, and
     that is the only sum made without reduction.
"""

P: constant(uint256) = 2**255 - 19
# The order of B.
L: constant(uint256) = 7237005577332262213973186563042994240857116359379907606001950938285454250989
# 2**256 modulo L, which folds the upper half of a SHA-512 digest.
FOLD: constant(uint256) = 7237005577332262213973186563042994240413239274941949949428319933631315875101
D: constant(uint256) = 37095705934669439343138083508754565189542113879843219016388785533085940283555
TWICE_D: constant(uint256) = 16295367250680780974490674513165176452449235426866156013048779062215315747161
# A square root of -1.
ROOT: constant(uint256) = 19681161376707505956807079304988542015446066515923890162744021073123829784752
# y of the two pairs of points of order eight.
ORDER_8: constant(uint256) = 2707385501144840649318225287225658788936804267575313519463743609750303402022

# B, B' = [2^128]B and B + B' as table entries (y - x, y + x, 2, 2dxy).
BASE: constant(uint256[4]) = [
    31204614345391077396927242593886631629853981173214368409736920319215404093758,
    3533012425803781230144052908719740726127014226477800802100354883158534798213,
    2,
    50237614328228664512531835696112167678046477356841409204013502641986506238568,
]
BASE_HIGH: constant(uint256[4]) = [
    8602625848320914101981327737814350220059964367615824096981864165998591852103,
    19598377658861224783845010894811287771959579301160358177487377480285833498274,
    2,
    30942559212363234812595554070815474796498884287982536881367675299020161195262,
]
BASE_BOTH: constant(uint256[4]) = [
    33399453579685110478598742192585096935465040239002625100263273303326910003694,
    17472726035830446816094115497422552771654584893968641625669366928325941684040,
    2,
    35336388391818003849592193344440500763331989931594398741262329158723582748189,
]

# What ends SHA-512's block: one bit, zeros, and the length of 888 bits.
PADDING: constant(uint256) = 128 * 2**128 + 888
M64: constant(uint256) = 2**64 - 1
M128: constant(uint256) = 2**128 - 1
# Times this, a 64-bit word stands twice in 128 bits, and a right shift is a rotation in the lower half.
TWICE: constant(uint256) = 2**64 + 1
# Every other group of n bytes.
BYTES_1: constant(uint256) = max_value(uint256) // (2**8 + 1)
BYTES_2: constant(uint256) = max_value(uint256) // (2**16 + 1)
BYTES_4: constant(uint256) = max_value(uint256) // (2**32 + 1)
BYTES_8: constant(uint256) = max_value(uint256) // (2**64 + 1)
# The lowest n of every 4n bits.
BITS_32: constant(uint256) = max_value(uint256) // (2**128 - 1) * (2**32 - 1)
BITS_16: constant(uint256) = max_value(uint256) // (2**64 - 1) * (2**16 - 1)
BITS_8: constant(uint256) = max_value(uint256) // (2**32 - 1) * (2**8 - 1)
BITS_4: constant(uint256) = max_value(uint256) // (2**16 - 1) * (2**4 - 1)
BITS_2: constant(uint256) = max_value(uint256) // (2**8 - 1) * (2**2 - 1)
BITS_1: constant(uint256) = max_value(uint256) // (2**4 - 1)
# The initial state of SHA-512.
IV_A: constant(uint256) = 7640891576956012808
IV_B: constant(uint256) = 13503953896175478587
IV_C: constant(uint256) = 4354685564936845355
IV_D: constant(uint256) = 11912009170470909681
IV_E: constant(uint256) = 5840696475078001361
IV_F: constant(uint256) = 11170449401992604703
IV_G: constant(uint256) = 2270897969802886507
IV_H: constant(uint256) = 6620516959819538809


struct Key:
    # The key's 32 bytes as published.
    encoded: bytes32
    # x of -A; y is in `encoded`.
    x: uint256
    # [2^128](-A).
    x_high: uint256
    y_high: uint256


@internal
@view
def _power(base: uint256, exponent: uint256) -> uint256:
    """
    @notice `base` to the `exponent` modulo P, by the precompile of EIP-198.
    @param base Any value.
    @param exponent Any value.
    @return The power, below P.
    """
    answer: Bytes[32] = raw_call(
        0x0000000000000000000000000000000000000005,
        abi_encode(convert(32, uint256), convert(32, uint256), convert(32, uint256), base, exponent, P),
        max_outsize=32,
        is_static_call=True,
    )
    return convert(answer, uint256)


@internal
@pure
def _swap(word: uint256) -> uint256:
    """
    @notice The 32 bytes of `word` in reverse order: Ed25519 is little-endian, the EVM big-endian.
    @param word Any value.
    @return The reversed value.
    """
    v: uint256 = word
    v = ((v & BYTES_1) << 8) | ((v >> 8) & BYTES_1)
    v = ((v & BYTES_2) << 16) | ((v >> 16) & BYTES_2)
    v = ((v & BYTES_4) << 32) | ((v >> 32) & BYTES_4)
    v = ((v & BYTES_8) << 64) | ((v >> 64) & BYTES_8)
    return (v << 128) | (v >> 128)


@internal
@pure
def _spread(word: uint256) -> uint256:
    """
    @notice Moves bit i of a 64-bit value to bit 4i.
    @param word Below 2**64.
    @return The spread value; four of them make one word of table digits.
    """
    v: uint256 = word
    v = (v | (v << 96)) & BITS_32
    v = (v | (v << 48)) & BITS_16
    v = (v | (v << 24)) & BITS_8
    v = (v | (v << 12)) & BITS_4
    v = (v | (v << 6)) & BITS_2
    return (v | (v << 3)) & BITS_1


@internal
@view
def _expand(encoded: bytes32) -> Key:
    """
    @notice Checks a public key once and for all, and computes what every verification needs of it.
    @param encoded The 32 bytes of RFC 8032. Reverts unless they are canonical, on the curve and not of small order.
    @return The key with -A and [2^128](-A) in affine coordinates.
    """
    raw: uint256 = self._swap(convert(encoded, uint256))
    sign: uint256 = raw >> 255
    y: uint256 = raw & (2**255 - 1)
    assert y < P, "spending key is not canonical"

    # x^2 = u / v; the candidate root is u v^3 (u v^7)^((P - 5) / 8), or that times sqrt(-1).
    yy: uint256 = uint256_mulmod(y, y, P)
    u: uint256 = uint256_addmod(yy, P - 1, P)
    v: uint256 = uint256_addmod(uint256_mulmod(yy, D, P), 1, P)
    v3: uint256 = uint256_mulmod(uint256_mulmod(v, v, P), v, P)
    uv3: uint256 = uint256_mulmod(u, v3, P)
    root: uint256 = uint256_mulmod(
        uv3, self._power(uint256_mulmod(uint256_mulmod(uv3, v3, P), v, P), (P - 5) // 8), P
    )
    square: uint256 = uint256_mulmod(uint256_mulmod(root, root, P), v, P)
    if square != u:
        assert uint256_addmod(square, u, P) == 0, "spending key is off the curve"
        root = uint256_mulmod(root, ROOT, P)
    # x of -A, whose parity is the opposite of A's; x = 0 is of small order and refused below.
    if root & 1 == sign and root != 0:
        root = P - root

    X: uint256 = root
    Y: uint256 = y
    Z: uint256 = 1
    for i: uint256 in range(128):
        A: uint256 = uint256_mulmod(X, X, P)
        B: uint256 = uint256_mulmod(Y, Y, P)
        E: uint256 = uint256_mulmod(unsafe_add(X, X), Y, P)
        G: uint256 = unsafe_sub(unsafe_add(B, P), A)
        F: uint256 = uint256_addmod(
            uint256_mulmod(unsafe_add(Z, Z), Z, P), unsafe_sub(unsafe_add(A, P), B), P
        )
        X = uint256_mulmod(E, F, P)
        Y = uint256_mulmod(G, unsafe_add(A, B), P)
        Z = uint256_mulmod(F, G, P)
        if i == 2:
            # Eight times a point of small order is the neutral element, the one point with x = 0 and y = 1.
            assert X != 0, "spending key is of small order"
    inverse: uint256 = self._power(Z, P - 2)
    return Key(
        encoded=encoded,
        x=root,
        x_high=uint256_mulmod(X, inverse, P),
        y_high=uint256_mulmod(Y, inverse, P),
    )


@internal
@pure
def _challenge(r: uint256, key: uint256, tag: uint256, digest: uint256) -> uint256:
    """
    @notice SHA-512(R, A, tag, digest) modulo L: 111 bytes, exactly one block of SHA-512.
    @param r The 32 bytes of R.
    @param key The 32 bytes of the public key.
    @param tag The message's first 15 bytes.
    @param digest The message's other 32 bytes.
    @return k, below L.
    """
    # The message schedule and the state hold each 64-bit word twice, see TWICE; garbage above is cut at the stores.
    w: uint256[16] = empty(uint256[16])
    words: uint256[4] = [r, key, (tag << 136) | (digest >> 120), (digest << 136) | PADDING]
    w[0] = unsafe_mul((words[0] >> 192) & M64, TWICE)
    w[1] = unsafe_mul((words[0] >> 128) & M64, TWICE)
    w[2] = unsafe_mul((words[0] >> 64) & M64, TWICE)
    w[3] = unsafe_mul(words[0] & M64, TWICE)
    w[4] = unsafe_mul((words[1] >> 192) & M64, TWICE)
    w[5] = unsafe_mul((words[1] >> 128) & M64, TWICE)
    w[6] = unsafe_mul((words[1] >> 64) & M64, TWICE)
    w[7] = unsafe_mul(words[1] & M64, TWICE)
    w[8] = unsafe_mul((words[2] >> 192) & M64, TWICE)
    w[9] = unsafe_mul((words[2] >> 128) & M64, TWICE)
    w[10] = unsafe_mul((words[2] >> 64) & M64, TWICE)
    w[11] = unsafe_mul(words[2] & M64, TWICE)
    w[12] = unsafe_mul((words[3] >> 192) & M64, TWICE)
    w[13] = unsafe_mul((words[3] >> 128) & M64, TWICE)
    w[14] = unsafe_mul((words[3] >> 64) & M64, TWICE)
    w[15] = unsafe_mul(words[3] & M64, TWICE)

    a: uint256 = IV_A * TWICE
    b: uint256 = IV_B * TWICE
    c: uint256 = IV_C * TWICE
    d: uint256 = IV_D * TWICE
    e: uint256 = IV_E * TWICE
    f: uint256 = IV_F * TWICE
    g: uint256 = IV_G * TWICE
    h: uint256 = IV_H * TWICE
    t: uint256 = 0
    # The 80 round constants, four to a word.
    constants: uint256[4][5] = [
        [
            30096801404084068811247360663746357203044173796034528145698567218429933771708,
            25935122634584346436706874086480583077542117822914027260470472437514717987096,
            97713120635396977680697769843272527373624482266885226946491530571468232439010,
            51900010696100720908444931615216967786854911286379343671579341884649571427988,
        ],
        [
            103401920675400109860170246508106896458056884413521986031950962172746290469989,
            20766060231124176946735578952025014949529294188228074665041157544705715688373,
            68861658779949112811219365387608892200754158452336489007283202734579252137700,
            89953800238967349799878313568217187878921855746539465655410476046710159076976,
        ],
        [
            17963606718196534630652951837817304024096659132127128472845670573119529923551,
            45702062157733649874089597893608294698041545194719880929807041586673639109947,
            73613754813668576414515747339441760812762263824336035373268544622129262673456,
            94792946927146722610911763064251592641390781936796587950372383648173910643128,
        ],
        [
            11598916782833258151058160035166314883173415901042830109867890965740705761448,
            25831391754675947115739300257643948795965520124394439606325510817331933264035,
            52721853219307249207816160116952251027807172322863705378226887199491417717228,
            65470517827330056239252820220429605448311284561397725569858658296015747175211,
        ],
        [
            91436535936027547289344513476722492794362102132777897690028874286176851120504,
            3138635862126305852357487642309253070275759957357469173113163935405599115035,
            18480281367207100642144355522658418119177050488802768247460437101270784806220,
            34725313678108981319338520867046111900383064063677036411022907608217927768087,
        ],
    ]
    for i: uint256 in range(5):
        k: uint256[4] = constants[i]
        if i != 0:
            t = unsafe_add(unsafe_add(w[0], w[9]), (w[1] >> 1) ^ (w[1] >> 8) ^ ((w[1] & M64) >> 7))
            w[0] = unsafe_mul(unsafe_add(t, (w[14] >> 19) ^ (w[14] >> 61) ^ ((w[14] & M64) >> 6)) & M64, TWICE)
            t = unsafe_add(unsafe_add(w[1], w[10]), (w[2] >> 1) ^ (w[2] >> 8) ^ ((w[2] & M64) >> 7))
            w[1] = unsafe_mul(unsafe_add(t, (w[15] >> 19) ^ (w[15] >> 61) ^ ((w[15] & M64) >> 6)) & M64, TWICE)
            t = unsafe_add(unsafe_add(w[2], w[11]), (w[3] >> 1) ^ (w[3] >> 8) ^ ((w[3] & M64) >> 7))
            w[2] = unsafe_mul(unsafe_add(t, (w[0] >> 19) ^ (w[0] >> 61) ^ ((w[0] & M64) >> 6)) & M64, TWICE)
            t = unsafe_add(unsafe_add(w[3], w[12]), (w[4] >> 1) ^ (w[4] >> 8) ^ ((w[4] & M64) >> 7))
            w[3] = unsafe_mul(unsafe_add(t, (w[1] >> 19) ^ (w[1] >> 61) ^ ((w[1] & M64) >> 6)) & M64, TWICE)
            t = unsafe_add(unsafe_add(w[4], w[13]), (w[5] >> 1) ^ (w[5] >> 8) ^ ((w[5] & M64) >> 7))
            w[4] = unsafe_mul(unsafe_add(t, (w[2] >> 19) ^ (w[2] >> 61) ^ ((w[2] & M64) >> 6)) & M64, TWICE)
            t = unsafe_add(unsafe_add(w[5], w[14]), (w[6] >> 1) ^ (w[6] >> 8) ^ ((w[6] & M64) >> 7))
            w[5] = unsafe_mul(unsafe_add(t, (w[3] >> 19) ^ (w[3] >> 61) ^ ((w[3] & M64) >> 6)) & M64, TWICE)
            t = unsafe_add(unsafe_add(w[6], w[15]), (w[7] >> 1) ^ (w[7] >> 8) ^ ((w[7] & M64) >> 7))
            w[6] = unsafe_mul(unsafe_add(t, (w[4] >> 19) ^ (w[4] >> 61) ^ ((w[4] & M64) >> 6)) & M64, TWICE)
            t = unsafe_add(unsafe_add(w[7], w[0]), (w[8] >> 1) ^ (w[8] >> 8) ^ ((w[8] & M64) >> 7))
            w[7] = unsafe_mul(unsafe_add(t, (w[5] >> 19) ^ (w[5] >> 61) ^ ((w[5] & M64) >> 6)) & M64, TWICE)
            t = unsafe_add(unsafe_add(w[8], w[1]), (w[9] >> 1) ^ (w[9] >> 8) ^ ((w[9] & M64) >> 7))
            w[8] = unsafe_mul(unsafe_add(t, (w[6] >> 19) ^ (w[6] >> 61) ^ ((w[6] & M64) >> 6)) & M64, TWICE)
            t = unsafe_add(unsafe_add(w[9], w[2]), (w[10] >> 1) ^ (w[10] >> 8) ^ ((w[10] & M64) >> 7))
            w[9] = unsafe_mul(unsafe_add(t, (w[7] >> 19) ^ (w[7] >> 61) ^ ((w[7] & M64) >> 6)) & M64, TWICE)
            t = unsafe_add(unsafe_add(w[10], w[3]), (w[11] >> 1) ^ (w[11] >> 8) ^ ((w[11] & M64) >> 7))
            w[10] = unsafe_mul(unsafe_add(t, (w[8] >> 19) ^ (w[8] >> 61) ^ ((w[8] & M64) >> 6)) & M64, TWICE)
            t = unsafe_add(unsafe_add(w[11], w[4]), (w[12] >> 1) ^ (w[12] >> 8) ^ ((w[12] & M64) >> 7))
            w[11] = unsafe_mul(unsafe_add(t, (w[9] >> 19) ^ (w[9] >> 61) ^ ((w[9] & M64) >> 6)) & M64, TWICE)
            t = unsafe_add(unsafe_add(w[12], w[5]), (w[13] >> 1) ^ (w[13] >> 8) ^ ((w[13] & M64) >> 7))
            w[12] = unsafe_mul(unsafe_add(t, (w[10] >> 19) ^ (w[10] >> 61) ^ ((w[10] & M64) >> 6)) & M64, TWICE)
            t = unsafe_add(unsafe_add(w[13], w[6]), (w[14] >> 1) ^ (w[14] >> 8) ^ ((w[14] & M64) >> 7))
            w[13] = unsafe_mul(unsafe_add(t, (w[11] >> 19) ^ (w[11] >> 61) ^ ((w[11] & M64) >> 6)) & M64, TWICE)
            t = unsafe_add(unsafe_add(w[14], w[7]), (w[15] >> 1) ^ (w[15] >> 8) ^ ((w[15] & M64) >> 7))
            w[14] = unsafe_mul(unsafe_add(t, (w[12] >> 19) ^ (w[12] >> 61) ^ ((w[12] & M64) >> 6)) & M64, TWICE)
            t = unsafe_add(unsafe_add(w[15], w[8]), (w[0] >> 1) ^ (w[0] >> 8) ^ ((w[0] & M64) >> 7))
            w[15] = unsafe_mul(unsafe_add(t, (w[13] >> 19) ^ (w[13] >> 61) ^ ((w[13] & M64) >> 6)) & M64, TWICE)
        t = unsafe_add(unsafe_add(h, k[0] >> 192), unsafe_add(w[0], g ^ (e & (f ^ g))))
        t = unsafe_add(t, (e >> 14) ^ (e >> 18) ^ (e >> 41))
        d = unsafe_mul(unsafe_add(d, t) & M64, TWICE)
        t = unsafe_add(t, (a >> 28) ^ (a >> 34) ^ (a >> 39))
        h = unsafe_mul(unsafe_add(t, (a & b) | (c & (a | b))) & M64, TWICE)
        t = unsafe_add(unsafe_add(g, k[0] >> 128), unsafe_add(w[1], f ^ (d & (e ^ f))))
        t = unsafe_add(t, (d >> 14) ^ (d >> 18) ^ (d >> 41))
        c = unsafe_mul(unsafe_add(c, t) & M64, TWICE)
        t = unsafe_add(t, (h >> 28) ^ (h >> 34) ^ (h >> 39))
        g = unsafe_mul(unsafe_add(t, (h & a) | (b & (h | a))) & M64, TWICE)
        t = unsafe_add(unsafe_add(f, k[0] >> 64), unsafe_add(w[2], e ^ (c & (d ^ e))))
        t = unsafe_add(t, (c >> 14) ^ (c >> 18) ^ (c >> 41))
        b = unsafe_mul(unsafe_add(b, t) & M64, TWICE)
        t = unsafe_add(t, (g >> 28) ^ (g >> 34) ^ (g >> 39))
        f = unsafe_mul(unsafe_add(t, (g & h) | (a & (g | h))) & M64, TWICE)
        t = unsafe_add(unsafe_add(e, k[0]), unsafe_add(w[3], d ^ (b & (c ^ d))))
        t = unsafe_add(t, (b >> 14) ^ (b >> 18) ^ (b >> 41))
        a = unsafe_mul(unsafe_add(a, t) & M64, TWICE)
        t = unsafe_add(t, (f >> 28) ^ (f >> 34) ^ (f >> 39))
        e = unsafe_mul(unsafe_add(t, (f & g) | (h & (f | g))) & M64, TWICE)
        t = unsafe_add(unsafe_add(d, k[1] >> 192), unsafe_add(w[4], c ^ (a & (b ^ c))))
        t = unsafe_add(t, (a >> 14) ^ (a >> 18) ^ (a >> 41))
        h = unsafe_mul(unsafe_add(h, t) & M64, TWICE)
        t = unsafe_add(t, (e >> 28) ^ (e >> 34) ^ (e >> 39))
        d = unsafe_mul(unsafe_add(t, (e & f) | (g & (e | f))) & M64, TWICE)
        t = unsafe_add(unsafe_add(c, k[1] >> 128), unsafe_add(w[5], b ^ (h & (a ^ b))))
        t = unsafe_add(t, (h >> 14) ^ (h >> 18) ^ (h >> 41))
        g = unsafe_mul(unsafe_add(g, t) & M64, TWICE)
        t = unsafe_add(t, (d >> 28) ^ (d >> 34) ^ (d >> 39))
        c = unsafe_mul(unsafe_add(t, (d & e) | (f & (d | e))) & M64, TWICE)
        t = unsafe_add(unsafe_add(b, k[1] >> 64), unsafe_add(w[6], a ^ (g & (h ^ a))))
        t = unsafe_add(t, (g >> 14) ^ (g >> 18) ^ (g >> 41))
        f = unsafe_mul(unsafe_add(f, t) & M64, TWICE)
        t = unsafe_add(t, (c >> 28) ^ (c >> 34) ^ (c >> 39))
        b = unsafe_mul(unsafe_add(t, (c & d) | (e & (c | d))) & M64, TWICE)
        t = unsafe_add(unsafe_add(a, k[1]), unsafe_add(w[7], h ^ (f & (g ^ h))))
        t = unsafe_add(t, (f >> 14) ^ (f >> 18) ^ (f >> 41))
        e = unsafe_mul(unsafe_add(e, t) & M64, TWICE)
        t = unsafe_add(t, (b >> 28) ^ (b >> 34) ^ (b >> 39))
        a = unsafe_mul(unsafe_add(t, (b & c) | (d & (b | c))) & M64, TWICE)
        t = unsafe_add(unsafe_add(h, k[2] >> 192), unsafe_add(w[8], g ^ (e & (f ^ g))))
        t = unsafe_add(t, (e >> 14) ^ (e >> 18) ^ (e >> 41))
        d = unsafe_mul(unsafe_add(d, t) & M64, TWICE)
        t = unsafe_add(t, (a >> 28) ^ (a >> 34) ^ (a >> 39))
        h = unsafe_mul(unsafe_add(t, (a & b) | (c & (a | b))) & M64, TWICE)
        t = unsafe_add(unsafe_add(g, k[2] >> 128), unsafe_add(w[9], f ^ (d & (e ^ f))))
        t = unsafe_add(t, (d >> 14) ^ (d >> 18) ^ (d >> 41))
        c = unsafe_mul(unsafe_add(c, t) & M64, TWICE)
        t = unsafe_add(t, (h >> 28) ^ (h >> 34) ^ (h >> 39))
        g = unsafe_mul(unsafe_add(t, (h & a) | (b & (h | a))) & M64, TWICE)
        t = unsafe_add(unsafe_add(f, k[2] >> 64), unsafe_add(w[10], e ^ (c & (d ^ e))))
        t = unsafe_add(t, (c >> 14) ^ (c >> 18) ^ (c >> 41))
        b = unsafe_mul(unsafe_add(b, t) & M64, TWICE)
        t = unsafe_add(t, (g >> 28) ^ (g >> 34) ^ (g >> 39))
        f = unsafe_mul(unsafe_add(t, (g & h) | (a & (g | h))) & M64, TWICE)
        t = unsafe_add(unsafe_add(e, k[2]), unsafe_add(w[11], d ^ (b & (c ^ d))))
        t = unsafe_add(t, (b >> 14) ^ (b >> 18) ^ (b >> 41))
        a = unsafe_mul(unsafe_add(a, t) & M64, TWICE)
        t = unsafe_add(t, (f >> 28) ^ (f >> 34) ^ (f >> 39))
        e = unsafe_mul(unsafe_add(t, (f & g) | (h & (f | g))) & M64, TWICE)
        t = unsafe_add(unsafe_add(d, k[3] >> 192), unsafe_add(w[12], c ^ (a & (b ^ c))))
        t = unsafe_add(t, (a >> 14) ^ (a >> 18) ^ (a >> 41))
        h = unsafe_mul(unsafe_add(h, t) & M64, TWICE)
        t = unsafe_add(t, (e >> 28) ^ (e >> 34) ^ (e >> 39))
        d = unsafe_mul(unsafe_add(t, (e & f) | (g & (e | f))) & M64, TWICE)
        t = unsafe_add(unsafe_add(c, k[3] >> 128), unsafe_add(w[13], b ^ (h & (a ^ b))))
        t = unsafe_add(t, (h >> 14) ^ (h >> 18) ^ (h >> 41))
        g = unsafe_mul(unsafe_add(g, t) & M64, TWICE)
        t = unsafe_add(t, (d >> 28) ^ (d >> 34) ^ (d >> 39))
        c = unsafe_mul(unsafe_add(t, (d & e) | (f & (d | e))) & M64, TWICE)
        t = unsafe_add(unsafe_add(b, k[3] >> 64), unsafe_add(w[14], a ^ (g & (h ^ a))))
        t = unsafe_add(t, (g >> 14) ^ (g >> 18) ^ (g >> 41))
        f = unsafe_mul(unsafe_add(f, t) & M64, TWICE)
        t = unsafe_add(t, (c >> 28) ^ (c >> 34) ^ (c >> 39))
        b = unsafe_mul(unsafe_add(t, (c & d) | (e & (c | d))) & M64, TWICE)
        t = unsafe_add(unsafe_add(a, k[3]), unsafe_add(w[15], h ^ (f & (g ^ h))))
        t = unsafe_add(t, (f >> 14) ^ (f >> 18) ^ (f >> 41))
        e = unsafe_mul(unsafe_add(e, t) & M64, TWICE)
        t = unsafe_add(t, (b >> 28) ^ (b >> 34) ^ (b >> 39))
        a = unsafe_mul(unsafe_add(t, (b & c) | (d & (b | c))) & M64, TWICE)

    low: uint256 = (
        ((unsafe_add(a, IV_A) & M64) << 192)
        | ((unsafe_add(b, IV_B) & M64) << 128)
        | ((unsafe_add(c, IV_C) & M64) << 64)
        | (unsafe_add(d, IV_D) & M64)
    )
    high: uint256 = (
        ((unsafe_add(e, IV_E) & M64) << 192)
        | ((unsafe_add(f, IV_F) & M64) << 128)
        | ((unsafe_add(g, IV_G) & M64) << 64)
        | (unsafe_add(h, IV_H) & M64)
    )
    return uint256_addmod(uint256_mulmod(self._swap(high), FOLD, L), self._swap(low), L)


@internal
@view
def _table(key: Key) -> uint256[4][16]:
    """
    @notice The sums that one step of `_verify` adds from.
    @param key What `_expand` made of the public key.
    @return Entry b0 + 2 b1 + 4 b2 + 8 b3 is b0 B + b1 B' + b2 (-A) + b3 (-A)' as (Y - X, Y + X, 2Z, 2dT).
    """
    table: uint256[4][16] = empty(uint256[4][16])
    table[1] = BASE
    table[2] = BASE_HIGH
    table[3] = BASE_BOTH
    X: uint256 = 0
    Y: uint256 = 0
    Z: uint256 = 1
    T: uint256 = 0
    entry: uint256[4] = empty(uint256[4])
    # The rows of -A, of (-A)' and of their sum; each row's columns add B, B' and B + B' to it.
    for row: uint256 in range(1, 4):
        if row == 1:
            X = key.x
            Y = self._swap(convert(key.encoded, uint256)) & (2**255 - 1)
            T = uint256_mulmod(X, Y, P)
        elif row == 2:
            X = key.x_high
            Y = key.y_high
            T = uint256_mulmod(X, Y, P)
        else:
            # (-A)' is still here with Z = 1, and -A is entry 4.
            entry = table[4]
            A: uint256 = uint256_mulmod(unsafe_sub(unsafe_add(Y, P), X), entry[0], P)
            B: uint256 = uint256_mulmod(unsafe_add(Y, X), entry[1], P)
            C: uint256 = uint256_mulmod(T, entry[3], P)
            E: uint256 = unsafe_sub(unsafe_add(B, P), A)
            F: uint256 = unsafe_sub(P + 2, C)
            G: uint256 = unsafe_add(2, C)
            H: uint256 = unsafe_add(B, A)
            X = uint256_mulmod(E, F, P)
            Y = uint256_mulmod(G, H, P)
            T = uint256_mulmod(E, H, P)
            Z = uint256_mulmod(F, G, P)
        Z2: uint256 = uint256_addmod(Z, Z, P)
        table[4 * row] = [
            uint256_addmod(Y, unsafe_sub(P, X), P),
            uint256_addmod(Y, X, P),
            Z2,
            uint256_mulmod(T, TWICE_D, P),
        ]
        for column: uint256 in range(1, 4):
            # The column's point has Z = 1.
            entry = table[column]
            A: uint256 = uint256_mulmod(unsafe_sub(unsafe_add(Y, P), X), entry[0], P)
            B: uint256 = uint256_mulmod(unsafe_add(Y, X), entry[1], P)
            C: uint256 = uint256_mulmod(T, entry[3], P)
            E: uint256 = unsafe_sub(unsafe_add(B, P), A)
            F: uint256 = unsafe_sub(unsafe_add(Z2, P), C)
            G: uint256 = unsafe_add(Z2, C)
            H: uint256 = unsafe_add(B, A)
            A = uint256_mulmod(E, F, P)
            B = uint256_mulmod(G, H, P)
            C = uint256_mulmod(F, G, P)
            table[4 * row + column] = [
                uint256_addmod(B, unsafe_sub(P, A), P),
                uint256_addmod(B, A, P),
                uint256_addmod(C, C, P),
                uint256_mulmod(uint256_mulmod(E, H, P), TWICE_D, P),
            ]
    return table


@internal
@view
def _verify(key: Key, tag: uint256, digest: uint256, r: uint256, s: uint256) -> bool:
    """
    @notice Whether (r, s) is the key's signature over tag and digest.
    @param key What `_expand` made of the public key; never anything a caller supplies.
    @param tag The message's first 15 bytes.
    @param digest The message's other 32 bytes.
    @param r The signature's first 32 bytes.
    @param s The signature's last 32 bytes.
    @return True exactly where libsodium accepts.
    """
    S: uint256 = self._swap(s)
    if S >= L:
        return False
    k: uint256 = self._challenge(r, convert(key.encoded, uint256), tag, digest)

    table: uint256[4][16] = self._table(key)
    X: uint256 = 0
    Y: uint256 = 1
    Z: uint256 = 1
    A: uint256 = 0
    B: uint256 = 0
    C: uint256 = 0
    E: uint256 = 0
    F: uint256 = 0
    G: uint256 = 0
    H: uint256 = 0
    entry: uint256[4] = empty(uint256[4])
    s_low: uint256 = S & M128
    s_high: uint256 = S >> 128
    k_low: uint256 = k & M128
    k_high: uint256 = k >> 128
    for half: uint256 in range(2):
        digits: uint256 = (
            self._spread(s_low >> 64)
            | (self._spread(s_high >> 64) << 1)
            | (self._spread(k_low >> 64) << 2)
            | (self._spread(k_high >> 64) << 3)
        )
        s_low &= M64
        s_low <<= 64
        s_high &= M64
        s_high <<= 64
        k_low &= M64
        k_low <<= 64
        k_high &= M64
        k_high <<= 64
        for step: uint256 in range(64):
            # Doubling, with all four coordinates negated, which is the same point.
            A = uint256_mulmod(X, X, P)
            B = uint256_mulmod(Y, Y, P)
            E = uint256_mulmod(unsafe_add(X, X), Y, P)
            F = uint256_addmod(
                uint256_mulmod(unsafe_add(Z, Z), Z, P), unsafe_sub(unsafe_add(A, P), B), P
            )
            G = unsafe_sub(unsafe_add(B, P), A)
            H = unsafe_add(A, B)
            X = uint256_mulmod(E, F, P)
            Y = uint256_mulmod(G, H, P)
            Z = uint256_mulmod(F, G, P)
            if digits >> 252 != 0:
                entry = table[digits >> 252]
                # T of the doubled point is E H, needed only here.
                C = uint256_mulmod(uint256_mulmod(E, H, P), entry[3], P)
                A = uint256_mulmod(unsafe_sub(unsafe_add(Y, P), X), entry[0], P)
                B = uint256_mulmod(unsafe_add(Y, X), entry[1], P)
                H = uint256_mulmod(Z, entry[2], P)
                E = unsafe_sub(unsafe_add(B, P), A)
                F = unsafe_sub(unsafe_add(H, P), C)
                G = unsafe_add(H, C)
                X = uint256_mulmod(E, F, P)
                Y = uint256_mulmod(G, unsafe_add(B, A), P)
                Z = uint256_mulmod(F, G, P)
            digits <<= 4

    Z = self._power(Z, P - 2)
    X = uint256_mulmod(X, Z, P)
    Y = uint256_mulmod(Y, Z, P)
    if Y | ((X & 1) << 255) != self._swap(r):
        return False
    # libsodium also refuses an R of small order: (0, 1), (0, -1), y = 0 and the two pairs of order eight.
    return X != 0 and Y != 0 and Y != ORDER_8 and Y != P - ORDER_8
