//! Spools of other users: whoever can leave one could have put anything into it.

use super::home;
use crate::support::needs_fuse;

#[test]
fn a_spool_of_another_user_is_neither_mounted_nor_resumed() {
    needs_fuse!();
    let home = home(38);
    let told = home.script(
        r#"
        as $uid 'cat x.tar | ./restorefs mount -d --keep-spool --spool . - mnt; ./restorefs wait mnt; ./restorefs umount mnt'
        spool=$(echo $PWD/restorefs-*)
        state() { (cd $spool; find . -printf '%p %u %s %T@\n' | sort) | sha256sum; }
        before=$(state)
        mkdir ../point
        ln -s $spool ../link
        for path in $spool ../link; do
            echo "== $path"
            ./restorefs mount $path ../point || echo "exit $?"
            ./restorefs mount x.tar --resume $path ../point || echo "exit $?"
        done
        echo "== unchanged"
        [[ $(state) = "$before" ]] && ls ../point | wc -l
        echo "== theirs"
        as $uid "./restorefs mount $spool mnt; cat mnt/small; wc -c <mnt/large; ./restorefs umount mnt"
        "#,
    );
    let parts: Vec<&str> = told.split("== ").skip(1).collect();
    for refused in &parts[..2] {
        assert_eq!(refused.matches("belongs to another user (uid 38)").count(), 2, "{told}");
        assert_eq!(refused.matches("exit 1\n").count(), 2, "{told}");
    }
    assert_eq!(parts[2], "unchanged\n0\n", "{told}");
    assert!(parts[3].contains("packed300000\n"), "{told}");
}
