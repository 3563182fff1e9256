/*
 * The money protocol: who may spend, and what is charged for what was sent, whatever dies when.
 *
 * The names are the code's:
 *   opened, sent, done, closed, resolve             proxy/recorder.py
 *   _mint, _admit, move_on, resolve,
 *   _void_later                                     proxy/reservation.py
 *   _forward                                        proxy/exchange.py
 *   later                                           proxy/settler.py
 *   recover                                         proxy/worker/recovery.py
 *   admit, settle, settle_and_admit, sweep          the bank's functions, proxy/postgres/sql
 *
 * Scope: 2 workers, ATTEMPTS sendings, 2 budgets (the tenant's holds every attempt, a key's those of
 * worker 1) and at most FAULTS faults. Every ceiling is 2 and a generation costs 1 or 2, so at most
 * two attempts fit at once, and a third when the first ones were cheap.
 *
 * There is no clock. A statement in flight commits at any later time, also after its process died.
 * The sweeper comes at any moment: a worker that it overtakes is a stopped one that wakes up again.
 * A death comes between any two steps and loses nothing from the flight recorder (SIGKILL) or any
 * part of its end (power, a torn record); in the second case the file shows it. A request that was
 * sent arrives at any later time. Redis has no part in this, because no money is in Redis.
 *
 * Assumed: Postgres keeps what it committed, one call of a bank function is one atomic step, and the
 * file of a worker that lives is locked.
 *
 * A mutant is a -D flag that breaks one rule, and the model must then fail (check.py has the list).
 * MONEY_ONLY keeps only what a budget's owner would notice, to show that a mutant costs money.
 * A WITNESS_ flag fails on purpose where something rare happens, to show that it is reached.
 */

#ifndef ATTEMPTS
#define ATTEMPTS 3           /* 2 or 3 */
#endif
#ifndef FAULTS
#define FAULTS   2           /* deaths of workers, each at most once; statements or answers lost or repeated */
#endif
#define WORKERS  2
#define FILES    4           /* a worker that starts again begins a new file */
#define WORST    2           /* the ceiling of every attempt */
#define TENANT   0
#define KEY      1
#define NOBODY   255

/* states of an attempt's row */
#define ABSENT   0
#define OPEN     1
#define POST     2
#define VOID     3
#define CEILING  4
/* records of an attempt in its flight recorder, one bit each */
#define OPENED   1
#define SENT     2
#define DONE     4
#define END      8
/* where a request to Bedrock is */
#define NOT_SENT 0
#define FLYING   1
#define REFUSED  2           /* a complete error before any output: never billed */
#define ANSWERED 3           /* with its usage */
#define CUT      4           /* its usage never came; billed or not */
/* the answer to admit as the worker knows it */
#define SILENT   0
#define OK       1           /* or DUPLICATE of an attempt that is OPEN */
#define DENIED   2           /* or DUPLICATE of one that is resolved */
#define DEAF     3           /* nobody waits for it any more */
/* files of the flight recorders */
#define LOCKED   0           /* the worker lives, or has not begun */
#define ORPHAN   1
#define UNLINKED 2

/* Postgres: rows of attempts and budgets, and the statements under way to it */
byte row[ATTEMPTS];
byte charge[ATTEMPTS];       /* what its terminal entry and refunds charge */
byte terminal[ATTEMPTS];     /* how many terminal entries it has */
bool keyed[ATTEMPTS];        /* the key's budget holds it too */
byte reserved[2], settled[2], limit[2];
bool admitting[ATTEMPTS];
byte previous[ATTEMPTS];     /* settle_and_admit: the attempt that it resolves; NOBODY: plain admit */
byte settling[ATTEMPTS];     /* the state to settle as; ABSENT: no such statement */
byte verdict[ATTEMPTS];
bool acknowledged[ATTEMPTS];
#ifdef CHECK_THEN_ADD
bool checked[ATTEMPTS];
#endif

/* the workers' disks */
byte record[ATTEMPTS];
byte ending[ATTEMPTS];       /* the settlement of a DONE */
byte home[ATTEMPTS];         /* the recording, which the attempt's row stores */
byte file[FILES];
bool damaged[FILES];         /* another boot id or a torn record: absence proves nothing */

/* Bedrock */
byte wire[ATTEMPTS];
byte sends[ATTEMPTS];
byte bill[ATTEMPTS];
byte usage[ATTEMPTS];        /* what the answer reports */

byte minted, faults;
bool finished[WORKERS];

#if ATTEMPTS == 3
#define SUM(f)    (f(0) + f(1) + f(2))
#define EVERY(f)  (f(0) && f(1) && f(2))
#define EACH(f)   f(0) f(1) f(2)
#define PICK(f)   if :: f(0) -> x = 0 :: f(1) -> x = 1 :: f(2) -> x = 2 fi
#else
#define SUM(f)    (f(0) + f(1))
#define EVERY(f)  (f(0) && f(1))
#define EACH(f)   f(0) f(1)
#define PICK(f)   if :: f(0) -> x = 0 :: f(1) -> x = 1 fi
#endif
#define KEYED(x, amount) (keyed[x] -> (amount) : 0)
#define HELD(x)          (row[x] == OPEN -> WORST : 0)
#define HELD_KEY(x)      KEYED(x, HELD(x))
#define CHARGED(x)       charge[x]
#define CHARGED_KEY(x)   KEYED(x, charge[x])
#define BILLED(x)        bill[x]
#define BILLED_KEY(x)    KEYED(x, bill[x])

/* ---- what must be true at every moment --------------------------------------------------------- */

#define LIMITED    (reserved[TENANT] + settled[TENANT] <= limit[TENANT] && \
                    reserved[KEY] + settled[KEY] <= limit[KEY])
#define COVERED    (SUM(BILLED) <= reserved[TENANT] + settled[TENANT] && \
                    SUM(BILLED_KEY) <= reserved[KEY] + settled[KEY])
#define RESERVED   (reserved[TENANT] == SUM(HELD) && reserved[KEY] == SUM(HELD_KEY))
#define LEDGERED   (settled[TENANT] == SUM(CHARGED) && settled[KEY] == SUM(CHARGED_KEY))
#define ONE_END(x) (terminal[x] == (row[x] > OPEN -> 1 : 0))
#define ONE_ROW(x) (sends[x] <= 1 && (sends[x] == 0 || row[x] != ABSENT))
#define PAID(x)    (bill[x] <= HELD(x) + charge[x])
#define NEVER(x)   (row[x] != VOID || sends[x] == 0 || wire[x] == REFUSED)
#define EXACT(x)   (row[x] != POST || charge[x] == bill[x])

active proctype invariants()
{
end:
  do
  :: !LIMITED -> assert(0 == 1)  /* I1: reserved + settled is above the limit */
  :: !COVERED -> assert(0 == 2)  /* AWS bills more than the budgets hold */
#ifndef MONEY_ONLY
  :: !RESERVED -> assert(0 == 3)  /* I2: reserved is not what open attempts hold */
  :: !LEDGERED -> assert(0 == 4)  /* I3: settled is not what the entries say */
  :: !EVERY(ONE_END) -> assert(0 == 5)  /* I4: an attempt without exactly one terminal entry */
  :: !EVERY(ONE_ROW) -> assert(0 == 6)  /* I5: a request without a row of its own before it */
  :: !EVERY(PAID) -> assert(0 == 7)  /* AWS bills more than the attempt is charged */
  :: !EVERY(NEVER) -> assert(0 == 8)  /* VOID, but sent and perhaps billed */
  :: !EVERY(EXACT) -> assert(0 == 9)  /* POST, but not of what was billed */
#endif
  od
}

/* ---- the bank: proxy/postgres/sql ------------------------------------------------------------ */

#define FITS(x) (reserved[TENANT] + settled[TENANT] + WORST <= limit[TENANT] && \
                 (!keyed[x] || reserved[KEY] + settled[KEY] + WORST <= limit[KEY]))

inline reserve(x)
{
  reserved[TENANT] = reserved[TENANT] + WORST;
  reserved[KEY] = reserved[KEY] + KEYED(x, WORST)
}

/* Raises `reserved` in every budget that applies or in none, together with the attempt's row. */
inline admit(x)
{
  if
  :: row[x] != ABSENT ->                                            /* the primary key: DUPLICATE */
#ifdef NO_UNIQUE_ATTEMPT
     reserve(x);
#endif
#ifdef WITNESS_DUPLICATE
     if :: row[x] == OPEN -> assert(false) :: else fi;
#endif
     said = (row[x] == OPEN -> OK : DENIED)
#ifdef CHECK_THEN_ADD
  :: row[x] == ABSENT && checked[x] -> reserve(x); row[x] = OPEN; said = OK
  :: row[x] == ABSENT && !checked[x] && FITS(x) -> checked[x] = true
  :: row[x] == ABSENT && !checked[x] && !FITS(x) -> said = DENIED
#else
  :: row[x] == ABSENT && FITS(x) ->
#ifdef WITNESS_LATE_COMMIT
     if :: file[home[x]] == UNLINKED -> assert(false) :: else fi;
#endif
     reserve(x); row[x] = OPEN; said = OK
  :: row[x] == ABSENT && !FITS(x) ->
#ifdef WITNESS_DENIED
     assert(false);
#endif
     said = DENIED
#endif
  fi
}

#define AMOUNT(as, cost) (as == POST -> cost : (as == CEILING -> WORST : 0))

inline enter(x, as, cost)
{
  reserved[TENANT] = reserved[TENANT] - HELD(x);
  reserved[KEY] = reserved[KEY] - HELD_KEY(x);
  settled[TENANT] = settled[TENANT] + AMOUNT(as, cost);
  settled[KEY] = settled[KEY] + KEYED(x, AMOUNT(as, cost));
  charge[x] = charge[x] + AMOUNT(as, cost);
  terminal[x] = terminal[x] + 1;
  row[x] = as
}

/* The first terminal entry wins; a POST that finds a CEILING lowers it by a REFUND. A VOID may name
 * the recording that proves it: then only a row of that very recording is voided. */
inline settle(y, state, price, proof)
{
  if
#ifdef FRESH_FILE
  :: row[y] == OPEN -> enter(y, state, price)
#else
  :: row[y] == OPEN && (state != VOID || proof == home[y]) -> enter(y, state, price)
#endif
  :: row[y] == CEILING && state == POST && price < charge[y] ->     /* REFUNDED */
#ifdef WITNESS_REFUND
     assert(false);
#endif
     settled[TENANT] = settled[TENANT] - (charge[y] - price);
     settled[KEY] = settled[KEY] - KEYED(y, charge[y] - price);
     charge[y] = price
#ifdef NO_UNIQUE_ENTRY
  :: row[y] > OPEN -> enter(y, state, price)
#endif
  :: else -> skip                                                   /* ALREADY, UNKNOWN or REFUSED */
  fi
}

/* Open past twice the longest call: charged its ceiling, never released. */
inline sweep(x)
{
#ifdef RELEASE_ON_EXPIRY
  settle(x, VOID, 0, home[x])
#else
  settle(x, CEILING, 0, NOBODY)
#endif
}

/* Forgets what nobody will look at again, so that equal futures are equal states. */
#define OVER(x)   (x < minted && (record[x] >= END || file[home[x]] == UNLINKED))
inline retire(z)
{
  d_step {
    if :: !admitting[z] -> previous[z] = NOBODY :: else fi;
    if
    :: OVER(z) && !admitting[z] && settling[z] == ABSENT ->
       record[z] = END; ending[z] = ABSENT; usage[z] = 0; verdict[z] = DEAF; acknowledged[z] = false;
#ifndef LATE_COMMIT
       home[z] = 0;
#endif
       if :: wire[z] != FLYING -> wire[z] = NOT_SENT; sends[z] = 0 :: else fi
    :: else
    fi
  }
}

/* A statement in flight is lost; or it commits, and then its answer is lost or not, and a copy of it
 * is still under way or not. */
#define MISHAP       (faults < FAULTS) -> faults++
#define HEARS(y)     (file[home[y]] == LOCKED && record[y] < END)
#define ADMITTING(y) admitting[y]
#define SETTLING(y)  (settling[y] != ABSENT)
#define LOSE_ADMIT(y) (admitting[y] && faults < FAULTS)
#define LOSE_SETTLE(y) (settling[y] != ABSENT && faults < FAULTS)

active proctype postgres()
{
  byte x, said;
end:
  do
  :: atomic {
       PICK(ADMITTING);
       d_step {
         if :: previous[x] != NOBODY -> settle(previous[x], VOID, 0, home[previous[x]]) :: else fi;
         admit(x)
       };
       if
       :: admitting[x] = (said == SILENT);
          if :: verdict[x] == SILENT -> verdict[x] = said :: else fi
       :: MISHAP; admitting[x] = false
       :: MISHAP
       fi;
       said = SILENT; retire(x); x = 0 }
  :: atomic { PICK(LOSE_ADMIT); faults++; admitting[x] = false; retire(x); x = 0 }
  :: atomic {
       PICK(SETTLING);
       d_step { settle(x, settling[x], usage[x], home[x]) };
       if
       :: acknowledged[x] = HEARS(x); settling[x] = ABSENT
       :: MISHAP; settling[x] = ABSENT
       :: MISHAP; acknowledged[x] = HEARS(x)
       fi;
       retire(x); x = 0 }
  :: atomic { PICK(LOSE_SETTLE); faults++; settling[x] = ABSENT; retire(x); x = 0 }
  od
}

/* ---- Bedrock --------------------------------------------------------------------------------- */

#define HEARD(y)   (wire[y] == FLYING && file[home[y]] == LOCKED && ending[y] == ABSENT)
#define UNHEARD(y) (wire[y] == FLYING && !(file[home[y]] == LOCKED && ending[y] == ABSENT))

active proctype bedrock()
{
  byte x;
end:
  do
  :: atomic {
       PICK(HEARD);
       if
       :: wire[x] = CUT
       :: wire[x] = REFUSED
       :: wire[x] = ANSWERED; usage[x] = 1; bill[x] = bill[x] + 1
       :: wire[x] = ANSWERED; usage[x] = 2; bill[x] = bill[x] + 2
       :: wire[x] = CUT; bill[x] = bill[x] + 1
       fi;
       x = 0 }
  :: atomic {
       PICK(UNHEARD); wire[x] = CUT;
       if :: skip :: bill[x] = bill[x] + 2 fi;
       retire(x); x = 0 }
  od
}

/* ---- a worker: proxy/exchange.py and proxy/recorder.py ---------------------------------------- */

inline write(x, what)
{
  record[x] = record[x] | what
}

/* _mint: minted and opened in the flight recorder before the bank can know it. */
inline opened(x)
{
  x = minted; minted++;
  home[x] = f; keyed[x] = (w == 1);
  write(x, OPENED); admitting[x] = true
}

inline sent(x)
{
  verdict[x] = DEAF; write(x, SENT)
}

inline send(x)
{
  sends[x] = sends[x] + 1; wire[x] = FLYING
}

/* How it ended is known; the statement goes out, and is repeated until it is acknowledged. */
inline later(x, as)
{
  verdict[x] = DEAF; ending[x] = as; settling[x] = as
}

inline done(x, as)
{
  write(x, DONE); later(x, as)
}

inline closed(x)
{
  verdict[x] = DEAF; acknowledged[x] = false; write(x, END); retire(x)
}

/* What a death takes from the end of the file. Without its END an attempt is settled again, which is
 * what a recovery that dies and begins anew does: so END is kept here. */
#define LOSE(x) \
  do \
  :: home[x] == f && record[x] >= DONE && record[x] < END -> record[x] = record[x] & (DONE - 1) \
  :: home[x] == f && record[x] >= SENT && record[x] < DONE -> record[x] = record[x] & (SENT - 1) \
  :: home[x] == f && record[x] == OPENED -> record[x] = 0 \
  :: break \
  od;
#define DEAFEN(x) \
  if \
  :: x < minted && home[x] == f -> \
     verdict[x] = DEAF; acknowledged[x] = false; \
     if :: !(record[x] & DONE) -> ending[x] = ABSENT :: else fi; \
     if \
     :: row[x] != VOID && ending[x] == ABSENT && settling[x] == ABSENT && next == NOBODY && wire[x] > FLYING -> \
        wire[x] = CUT; usage[x] = 0 \
     :: else \
     fi \
  :: else \
  fi;

inline die()
{
  faults++;
  if
  :: skip                                                           /* SIGKILL */
  :: EACH(LOSE)                                                     /* power, or a torn record */
#ifdef LOST_TAIL
     skip
#else
     damaged[f] = true
#endif
  fi;
  d_step { EACH(DEAFEN) };
  file[f] = ORPHAN; f = f + WORKERS; a = NOBODY; next = NOBODY
}

/* The worker waits no longer: the statement is lost, or slow. */
#define AWAY(x)   (verdict[x] == SILENT && (!admitting[x] || faults < FAULTS))
inline away(x)
{
  if :: admitting[x] -> faults++ :: else fi
}

#define DIES      :: atomic { faults < FAULTS && f < WORKERS -> die(); goto call }
#define SETTLED(x) (x == NOBODY -> true : acknowledged[x])

proctype worker(byte w)
{
  byte a = NOBODY, next = NOBODY, f = w;
call:
  do
  :: atomic { minted == ATTEMPTS -> finished[w] = true }; break
  :: atomic { minted < ATTEMPTS -> opened(a) };

_admit:
     if
     :: atomic { verdict[a] == OK -> sent(a) }
     :: atomic { AWAY(a) -> away(a); later(a, VOID); goto _resolve }      /* BankAway: _void_later */
     :: atomic { verdict[a] == DENIED -> closed(a); goto call }           /* nothing is held */
#ifdef SEND_WITHOUT_OK
     :: atomic { verdict[a] == SILENT -> sent(a) }
#endif
     DIES
     fi;

_forward:
#ifdef SENT_AFTER_SEND
     record[a] = record[a] & ~SENT;
#endif
     if
     :: atomic { send(a) }
     :: atomic { done(a, VOID); goto _resolve }                           /* the connection was never made */
     DIES
     fi;
#ifdef SENT_AFTER_SEND
     if :: sent(a) DIES fi;
#endif
     do
     :: atomic { wire[a] == ANSWERED -> done(a, POST); goto _resolve }
     :: atomic { wire[a] == REFUSED -> done(a, VOID); goto _resolve }
     :: atomic { wire[a] == REFUSED && minted < ATTEMPTS ->
          write(a, DONE); ending[a] = VOID; opened(next); previous[next] = a; break }
#ifdef VOID_ON_SILENCE
     :: atomic { wire[a] == FLYING -> done(a, VOID); goto _resolve }
#else
     :: atomic { wire[a] == FLYING -> done(a, CEILING); goto _resolve }   /* silence */
#endif
     :: atomic { wire[a] == CUT -> done(a, CEILING); goto _resolve }
#ifdef SDK_RETRY
     :: atomic { wire[a] == CUT && sends[a] < 2 -> send(a) }
#endif
     DIES
     od;

_move_on:                                                                 /* settle_and_admit */
     if
     :: atomic { verdict[next] == OK -> closed(a); a = next; next = NOBODY; sent(a) }; goto _forward
     :: atomic { verdict[next] == DENIED -> closed(a); closed(next); next = NOBODY; goto call }
     :: atomic { AWAY(next) -> away(next); later(a, VOID); later(next, VOID) }
     DIES
     fi;

_resolve:                                                                 /* Settler.later */
     do
     :: atomic { SETTLED(a) && SETTLED(next) ->
          closed(a);
          if :: next != NOBODY -> closed(next); next = NOBODY :: else fi;
          goto call }
     :: atomic { settling[a] == ABSENT && !acknowledged[a] -> settling[a] = ending[a] }
     :: atomic { (next == NOBODY -> false : settling[next] == ABSENT && !acknowledged[next]) ->
          settling[next] = VOID }
     DIES
     od
  od
}

/* ---- proxy/worker/recovery.py ----------------------------------------------------------------- */

/* What the file of a dead worker proves. UNKNOWN changes nothing, and is asked once more. */
inline resolve(x)
{
  if
  :: home[x] == f && (record[x] & (DONE | END)) == DONE -> settle(x, ending[x], usage[x], home[x])
  :: home[x] == f && (record[x] & (SENT | DONE | END)) == SENT -> settle(x, CEILING, 0, NOBODY)
  :: home[x] == f && record[x] == OPENED && damaged[f] -> settle(x, CEILING, 0, NOBODY)
  :: home[x] == f && record[x] == OPENED && !damaged[f] -> settle(x, VOID, 0, f)
#ifdef FRESH_FILE
  :: home[x] != f && row[x] == OPEN -> settle(x, VOID, 0, f)
#endif
  :: else -> skip
  fi
}

active proctype recover()
{
  byte f, x;
end:
  do
  :: atomic {
       if :: file[0] == ORPHAN -> f = 0 :: file[1] == ORPHAN -> f = 1 fi;
       do :: x < ATTEMPTS -> d_step { resolve(x); x++ } :: else -> break od;
       if
       :: file[f] = UNLINKED; damaged[f] = false;
          do :: x > 0 -> d_step { x--; retire(x) } :: else -> break od
       :: x = 0                                                           /* it dies before that */
       fi;
       f = 0 }
  od
}

/* ---- the sweeper, and the invocation log ------------------------------------------------------- */

#ifdef LATE_COMMIT
#define LEFT(x)   (row[x] == OPEN && file[home[x]] != UNLINKED)
#else
#define LEFT(x)   (row[x] == OPEN)
#endif
#ifdef REFUND_BY_ABSENCE
#define LOGGED(x) (row[x] == CEILING && bill[x] < charge[x])
#else
#define LOGGED(x) (row[x] == CEILING && bill[x] > 0 && bill[x] < charge[x])
#endif

active proctype sweeper()
{
  byte x;
end:
  do
  :: atomic { PICK(LEFT); sweep(x); x = 0 }
  :: atomic { PICK(LOGGED); settle(x, POST, bill[x], NOBODY); x = 0 }
  od
}

/* ---- the end ---------------------------------------------------------------------------------- */

#define QUIET(x)    (!admitting[x] && settling[x] == ABSENT && wire[x] != FLYING && !LEFT(x))
#define RESOLVED(x) (row[x] != OPEN)

/* When nobody has anything left to do, every attempt is resolved. */
active proctype quiescence()
{
end:
  atomic {
    finished[0] && finished[1] && file[0] != ORPHAN && file[1] != ORPHAN && EVERY(QUIET) ->
#ifdef WITNESS_END
    assert(false);
#endif
    if
    :: !EVERY(RESOLVED) -> assert(0 == 10)  /* an attempt stays open for ever */
    :: else
    fi
  }
}

#define NO_PREVIOUS(x) previous[x] = NOBODY;

init
{
  atomic {
    limit[TENANT] = 4; limit[KEY] = 3;
    EACH(NO_PREVIOUS)
    run worker(0); run worker(1)
  }
}
