/*
 * The money protocol: who may spend, and what is charged for what was sent, whatever dies when.
 *
 * The names are the code's:
 *   opened, sent, done, closed, resolve             proxy/recorder.py
 *   _attempt, _admit, _forward, _move_on, _resolve,
 *   _abandon, _void_later, Settler.later            proxy/exchange.py
 *   recover                                         proxy/worker/recovery.py
 *   admit, settle, settle_and_admit, sweep          the bank's functions, proxy/postgres/sql
 *
 * Scope: 2 workers, ATTEMPTS sendings, 2 budgets (the tenant's holds every attempt, a key's those of
 * worker 1), CRASHES deaths of workers, MISHAPS of statements. Every ceiling is 2 and a generation
 * costs 1 or 2, so at most two attempts fit at once and a third when the first ones were cheap.
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
 * A WITNESS_ flag fails on purpose where something rare happens, to show that it is reached.
 */

#ifndef ATTEMPTS
#define ATTEMPTS 3           /* 2 or 3 */
#endif
#ifndef CRASHES
#define CRASHES  2           /* each worker dies at most once */
#endif
#ifndef MISHAPS
#define MISHAPS  2           /* statements or answers lost or repeated, waits given up */
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

byte minted, crashes, mishaps;
bool finished[WORKERS];

#if ATTEMPTS == 3
#define SUM(f)    (f(0) + f(1) + f(2))
#define EVERY(f)  (f(0) && f(1) && f(2))
#define EACH(f)   f(0) f(1) f(2)
#else
#define SUM(f)    (f(0) + f(1))
#define EVERY(f)  (f(0) && f(1))
#define EACH(f)   f(0) f(1)
#endif
#define KEYED(x, amount) (keyed[x] -> (amount) : 0)
#define HELD(x)          (row[x] == OPEN -> WORST : 0)
#define HELD_KEY(x)      KEYED(x, HELD(x))
#define CHARGED(x)       charge[x]
#define CHARGED_KEY(x)   KEYED(x, charge[x])
#define BILLED(x)        bill[x]
#define BILLED_KEY(x)    KEYED(x, bill[x])

/* ---- what must be true after every step that moves money ------------------------------------ */

#define SOUND(x) \
  assert(terminal[x] == (row[x] > OPEN -> 1 : 0));                  /* I4 */ \
  assert(sends[x] <= 1);                                            /* I5: no hidden sending */ \
  assert(sends[x] == 0 || row[x] != ABSENT);                        /* I5: its row was there first */ \
  assert(bill[x] <= HELD(x) + charge[x]);                           /* what AWS bills is covered */ \
  assert(row[x] != VOID || sends[x] == 0 || wire[x] == REFUSED);    /* never sent, or proven unbilled */ \
  assert(row[x] != POST || charge[x] == bill[x]);                   /* exact where usage is known */

inline invariants()
{
  d_step {
  assert(reserved[TENANT] + settled[TENANT] <= limit[TENANT]);      /* I1 */
  assert(reserved[KEY] + settled[KEY] <= limit[KEY]);
  assert(reserved[TENANT] == SUM(HELD));                            /* I2 */
  assert(reserved[KEY] == SUM(HELD_KEY));
  assert(settled[TENANT] == SUM(CHARGED));                          /* I3 */
  assert(settled[KEY] == SUM(CHARGED_KEY));
  assert(SUM(BILLED) <= reserved[TENANT] + settled[TENANT]);
  assert(SUM(BILLED_KEY) <= reserved[KEY] + settled[KEY]);
  EACH(SOUND)
  }
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
     assert(row[x] != OPEN);
#endif
     said = (row[x] == OPEN -> OK : DENIED)
#ifdef CHECK_THEN_ADD
  :: row[x] == ABSENT && checked[x] -> reserve(x); row[x] = OPEN; said = OK
  :: row[x] == ABSENT && !checked[x] && FITS(x) -> checked[x] = true
  :: row[x] == ABSENT && !checked[x] && !FITS(x) -> said = DENIED
#else
  :: row[x] == ABSENT && FITS(x) ->
#ifdef WITNESS_LATE_COMMIT
     assert(file[home[x]] != UNLINKED);
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

/* A statement in flight is lost; or it commits, and then its answer is lost or not, and a copy of it
 * is still under way or not. */
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

#define MISHAP    (mishaps < MISHAPS) -> mishaps++
#define HEARS(x)  (file[home[x]] == LOCKED && record[x] < END)

#define ADMIT(x) \
  :: atomic { admitting[x] && MISHAP; admitting[x] = false; retire(x) } \
  :: atomic { admitting[x] -> \
       d_step { \
         if :: previous[x] != NOBODY -> settle(previous[x], VOID, 0, home[previous[x]]) :: else fi; \
         admit(x) }; \
       if :: admitting[x] = (said == SILENT); \
             if :: verdict[x] == SILENT -> verdict[x] = said :: else fi \
          :: MISHAP; admitting[x] = false \
          :: MISHAP \
       fi; \
       said = SILENT; retire(x); invariants() }

#define SETTLE(x) \
  :: atomic { settling[x] != ABSENT && MISHAP; settling[x] = ABSENT; retire(x) } \
  :: atomic { settling[x] != ABSENT -> d_step { settle(x, settling[x], usage[x], home[x]) }; \
       if :: acknowledged[x] = HEARS(x); settling[x] = ABSENT \
          :: MISHAP; settling[x] = ABSENT \
          :: MISHAP; acknowledged[x] = HEARS(x) \
       fi; \
       retire(x); invariants() }

active proctype postgres()
{
  byte said;
end:
  do
  EACH(ADMIT)
  EACH(SETTLE)
  od
}

/* ---- Bedrock --------------------------------------------------------------------------------- */

#define ARRIVE(x) \
  :: atomic { wire[x] == FLYING -> \
       if :: wire[x] = CUT \
          :: wire[x] = REFUSED \
          :: wire[x] = ANSWERED; usage[x] = 1; bill[x] = bill[x] + 1 \
          :: wire[x] = ANSWERED; usage[x] = 2; bill[x] = bill[x] + 2 \
          :: wire[x] = CUT; bill[x] = bill[x] + 1 \
       fi; \
       retire(x); invariants() }

active proctype bedrock()
{
end:
  do
  EACH(ARRIVE)
  od
}

/* ---- a worker: proxy/exchange.py and proxy/recorder.py ---------------------------------------- */

inline write(x, what)
{
  record[x] = record[x] | what
}

/* _attempt: minted and opened in the flight recorder before the bank can know it. */
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
  sends[x] = sends[x] + 1; wire[x] = FLYING; invariants()
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
  if :: x < minted && home[x] == f -> verdict[x] = DEAF; acknowledged[x] = false :: else fi;

inline die()
{
  crashes++;
  EACH(DEAFEN)
  if
  :: skip                                                           /* SIGKILL */
  :: EACH(LOSE)                                                     /* power, or a torn record */
#ifndef LOST_TAIL
     damaged[f] = true
#endif
  fi;
  file[f] = ORPHAN; f = f + WORKERS; a = NOBODY; next = NOBODY
}

/* The worker waits no longer: the statement is lost, or slow. */
#define AWAY(x)   (verdict[x] == SILENT && (!admitting[x] || mishaps < MISHAPS))
inline away(x)
{
  if :: admitting[x] -> mishaps++ :: else fi
}

#define DIES      :: atomic { crashes < CRASHES && f < WORKERS -> die(); goto call }
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
#define RESOLVE(x) \
  if \
  :: home[x] == f && (record[x] & (DONE | END)) == DONE -> settle(x, ending[x], usage[x], home[x]) \
  :: home[x] == f && (record[x] & (SENT | DONE | END)) == SENT -> settle(x, CEILING, 0, NOBODY) \
  :: home[x] == f && record[x] == OPENED && damaged[f] -> settle(x, CEILING, 0, NOBODY) \
  :: home[x] == f && record[x] == OPENED && !damaged[f] -> settle(x, VOID, 0, f) \
  :: else -> FOREIGN(x) \
  fi;
#ifdef FRESH_FILE
#define FOREIGN(x) if :: row[x] == OPEN && home[x] != f -> settle(x, VOID, 0, f) :: else fi
#else
#define FOREIGN(x) skip
#endif
#define RETIRE(x) retire(x);
#define TAKE(x) \
  :: atomic { file[x] == ORPHAN -> f = x; EACH(RESOLVE) \
       if :: file[x] = UNLINKED; damaged[x] = false; EACH(RETIRE) \
          :: skip                                                         /* it dies before that */ \
       fi; \
       f = 0; invariants() }

active proctype recover()
{
  byte f;
end:
  do
  TAKE(0) TAKE(1)
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
#define SWEEP(x)  :: atomic { LEFT(x) -> sweep(x); invariants() }
#define LOG(x)    :: atomic { LOGGED(x) -> settle(x, POST, bill[x], NOBODY); invariants() }

active proctype sweeper()
{
end:
  do
  EACH(SWEEP)
  EACH(LOG)
  od
}

/* ---- the end ---------------------------------------------------------------------------------- */

#define QUIET(x)    (!admitting[x] && settling[x] == ABSENT && wire[x] != FLYING && !LEFT(x))
#define RESOLVED(x) (row[x] != OPEN)

/* Nothing stays open for ever: when nobody has anything left to do, every attempt is resolved. */
active proctype quiescence()
{
end:
  atomic {
    finished[0] && finished[1] && file[0] != ORPHAN && file[1] != ORPHAN && EVERY(QUIET) ->
#ifdef WITNESS_END
    assert(false);
#endif
    assert(EVERY(RESOLVED));
    assert(reserved[TENANT] == 0 && reserved[KEY] == 0)
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
